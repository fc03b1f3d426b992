//! Indexes, manifests and configurations with a few odd places.

#![no_main]

#[path = "support/json.rs"]
mod json;

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use serde_json::{Value, json};

#[derive(Arbitrary, Debug)]
struct Input {
    kind: u8,
    changes: json::Changes,
    flips: Vec<(u16, u8)>,
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn document(kind: u8) -> Value {
    let descriptor = |media_type: &str| {
        json!({ "mediaType": media_type, "digest": DIGEST, "size": 10,
            "platform": { "architecture": "amd64", "os": "linux", "variant": "v2" },
            "annotations": { "org.opencontainers.image.ref.name": "latest" } })
    };
    match kind % 3 {
        0 => json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json")] }),
        1 => json!({ "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip")] }),
        _ => json!({ "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": { "User": "a", "Env": ["A=b"], "Cmd": ["sh"], "Entrypoint": ["/x"],
                "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/v": {} }, "Labels": { "a": "b" },
                "WorkingDir": "/", "StopSignal": "SIGTERM" },
            "history": [{ "created": "2024-01-01T00:00:00Z", "empty_layer": true }],
            "rootfs": { "type": "layers", "diff_ids": [DIGEST] } }),
    }
}

fuzz_target!(|input: Input| {
    let mut document = document(input.kind);
    input.changes.apply(&mut document);
    let mut bytes = serde_json::to_vec(&document).expect("JSON is plain data");
    for (place, value) in input.flips.iter().take(3) {
        let length = bytes.len();
        bytes[usize::from(*place) % length] ^= value;
    }
    caisson_rootfs::fuzzing::read_documents(&bytes);
});
