//! What this process makes of confined ones that lie, die or say nothing. They are played
//! by shell scripts: whatever the real one can be made to do, they can.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::digest::Algorithm;
use crate::layer::Converted;
use crate::limits::Limits;
use crate::tar::testing::TarBuilder;

struct Liar {
    directory: tempfile::TempDir,
}

impl Liar {
    /// Its streams are those of the real one: 0 the data, 1 the image, 2 the socket.
    fn new(script: &str) -> Liar {
        let directory = tempfile::tempdir().unwrap();
        let liar = Liar { directory };
        // By another process: a child that a test beside this one forks would hold the file
        // open for writing, and so it could not be executed (ETXTBSY).
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let mut writer = Command::new("sh");
        writer.args(["-c", write]).arg(liar.program()).arg(script);
        assert!(writer.status().unwrap().success());
        liar
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("liar")
    }

    fn unpack(&self, source: impl Read) -> Result<Converted, UnpackError> {
        let path = self.directory.path().join("image");
        let image = fs::File::create(path).unwrap();
        let scratch = tempfile::tempfile().unwrap();
        let unpacker = Unpacker::at(self.program());
        let limits = Limits::default();
        unpack_layer(&unpacker, source, Algorithm::Sha256, image, &scratch, None, &limits)
    }
}

fn layer() -> Vec<u8> {
    TarBuilder::new().file("file", &[7; 300_000]).finish()
}

const DONE: &str = r#"echo '{"Done":{"opaque":false,"inodes":1,"file_bytes":1}}' >&2"#;

#[test]
fn a_converter_cannot_claim_another_layers_diff_id() {
    let script = format!("cat >/dev/null; head -c 4096 /dev/zero; {DONE}");
    let converted = Liar::new(&script).unpack(&layer()[..]).unwrap();
    // It has no say in it: the digest is that of the bytes which it was given.
    assert_eq!(converted.diff_id, crate::Digest::of(&layer()));
    assert_eq!(converted.uncompressed_bytes, layer().len() as u64);
    assert_eq!(converted.image_bytes, 4096);
}

#[test]
fn an_image_of_an_impossible_size_is_refused() {
    for size in ["0", "1", "4097"] {
        let script = format!("cat >/dev/null; head -c {size} /dev/zero; {DONE}");
        let error = Liar::new(&script).unpack(&layer()[..]).unwrap_err();
        assert!(matches!(error, UnpackError::Answer), "{size}: {error:?}");
    }
}

#[test]
fn nonsense_as_an_answer_is_refused() {
    let flood = "cat >/dev/null; head -c 1000000 /dev/zero >&2";
    let half = r#"cat >/dev/null; printf '{"Done":{"opaque":false' >&2"#;
    let unknown = r#"cat >/dev/null; echo '{"Done":{"diff_id":"sha256:0"}}' >&2"#;
    let silent = "cat >/dev/null";
    let deaf = "exec 0<&-; exit 0";
    for script in [flood, half, unknown, silent, deaf] {
        let error = Liar::new(script).unpack(&layer()[..]).unwrap_err();
        assert!(matches!(error, UnpackError::Answer), "{script}: {error:?}");
    }
}

#[test]
fn the_end_of_a_converter_is_told_by_its_cause() {
    for (script, signal, word) in [
        ("kill -KILL $$", libc::SIGKILL, "SIGKILL"),
        ("cat >/dev/null; kill -KILL $$", libc::SIGKILL, "SIGKILL"),
        ("head -c 1000 >/dev/null; kill -SYS $$", libc::SIGSYS, "forbidden system call"),
        ("cat >/dev/null; kill -XCPU $$", libc::SIGXCPU, "CPU time"),
        ("echo oh no >&2; kill -ABRT $$", libc::SIGABRT, "gave up (SIGABRT): oh no"),
    ] {
        let error = Liar::new(script).unpack(&layer()[..]).unwrap_err();
        let UnpackError::Died(end) = &error else { panic!("{script}: {error:?}") };
        assert_eq!(end.signal(), Some(signal), "{script}");
        assert!(error.to_string().contains(word), "{script}: {error}");
    }
    let error = Liar::new("exit 7").unpack(&layer()[..]).unwrap_err();
    assert!(error.to_string().contains("exited with code 7"), "{error}");
}

#[test]
fn the_words_of_a_converter_cannot_reach_a_terminal() {
    let script = r#"cat >/dev/null; printf '{"Refused":"\\u001b[2J\\nfake line"}\n' >&2"#;
    let error = Liar::new(script).unpack(&layer()[..]).unwrap_err();
    assert_eq!(error.to_string(), "\\u{1b}[2J\\u{a}fake line");
}

#[test]
fn a_decompressor_cannot_exceed_what_it_was_given() {
    // Decompressor and converter alike: endless output, whatever comes in.
    let liar = Liar::new("exec cat /dev/zero");
    let limits = Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..Limits::default() };
    let unpacker = Unpacker::at(liar.program());
    let mut passed = 0;
    let gzip = [&[0x1f, 0x8b][..], &[0; 1000]].concat();
    let sink = |data: &[u8]| {
        passed += data.len() as u64;
        Ok(())
    };
    let error = expand(&unpacker, &gzip[..], &limits, u64::MAX, sink).unwrap_err();
    assert!(matches!(error, UnpackError::Compression(_)), "{error:?}");
    assert!(passed <= 2 << 20, "{passed}");
}

#[test]
fn a_missing_program_is_named_with_the_way_out() {
    let unpacker = Unpacker::at("/nonexistent/caisson-unpack");
    let gzip = [0x1f, 0x8b, 0, 0, 0, 0, 0];
    let error = expand(&unpacker, &gzip[..], &Limits::default(), u64::MAX, |_| Ok(())).unwrap_err();
    assert!(matches!(error, UnpackError::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains("cargo xtask build"), "{error}");
}
