//! A registry of the tests' own, which misbehaves as it is told.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::*;
use crate::digest::Digest;
use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::tar::testing::TarBuilder;

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }
}

/// What the server does with a request.
pub(super) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// An answer whose head promises more than these bytes, and then the end.
    Cut {
        headers: Vec<(String, String)>,
        promised: u64,
        body: Vec<u8>,
    },
    /// One byte of the body after each pause.
    Drip {
        body: Vec<u8>,
        pause: Duration,
    },
    /// Nothing at all, until the client has had enough.
    Silence,
    Hangup,
}

pub(super) fn answer(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply::Answer { status, headers: vec![], body: body.into() }
}

pub(super) fn redirect(to: &str) -> Reply {
    Reply::Answer { status: 307, headers: vec![("Location".into(), to.into())], body: vec![] }
}

type Script = Box<dyn Fn(&Asked, usize) -> Option<Reply> + Send + Sync>;

/// Serves images on a port of the loopback interface.
pub(super) struct Server {
    pub(super) host: String,
    inner: Arc<Inner>,
}

struct Inner {
    /// By path below `/v2/`: type and content.
    content: Mutex<HashMap<String, (String, Vec<u8>)>>,
    asked: Mutex<Vec<Asked>>,
    script: Mutex<Option<Script>>,
}

impl Server {
    pub(super) fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let inner = Arc::new(Inner {
            content: Mutex::default(),
            asked: Mutex::default(),
            script: Mutex::default(),
        });
        let serving = Arc::clone(&inner);
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = Arc::clone(&serving);
                thread::spawn(move || serve(&serving, stream));
            }
        });
        Server { host, inner }
    }

    /// With one image `app:1` of a gzip layer.
    pub(super) fn with_image() -> (Server, TestImage) {
        let server = Server::start();
        let image = TestImage::new(&[("hello", b"world")]);
        server.put_image("app", "1", &image);
        (server, image)
    }

    /// What is said instead, if anything; it is told how many such requests came before.
    pub(super) fn script(
        &self,
        script: impl Fn(&Asked, usize) -> Option<Reply> + Send + Sync + 'static,
    ) {
        *self.inner.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Puts another script before the one that is there.
    pub(super) fn script_before(
        &self,
        first: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
    ) {
        let mut script = self.inner.script.lock().unwrap();
        let then = script.take();
        *script = Some(Box::new(move |asked, nth| {
            first(asked).or_else(|| then.as_ref().and_then(|then| then(asked, nth)))
        }));
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().unwrap().clone()
    }

    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        self.asked().iter().filter(|asked| asked.is(method, part)).count()
    }

    pub(super) fn put(&self, path: &str, kind: &str, data: &[u8]) {
        let mut content = self.inner.content.lock().unwrap();
        content.insert(path.to_owned(), (kind.to_owned(), data.to_vec()));
    }

    pub(super) fn put_image(&self, repository: &str, tag: &str, image: &TestImage) {
        for (digest, data) in &image.blobs {
            self.put(&format!("{repository}/blobs/{digest}"), "application/octet-stream", data);
        }
        self.put_manifest(repository, tag, OCI_MANIFEST, &image.manifest);
    }

    pub(super) fn put_manifest(&self, repository: &str, tag: &str, kind: &str, data: &[u8]) {
        self.put(&format!("{repository}/manifests/{tag}"), kind, data);
        self.put(&format!("{repository}/manifests/{}", Digest::of(data)), kind, data);
    }

    pub(super) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }
}

pub(super) use crate::reference::Reference;

pub(super) struct TestImage {
    pub(super) blobs: Vec<(Digest, Vec<u8>)>,
    pub(super) manifest: Vec<u8>,
    pub(super) layer: Digest,
}

impl TestImage {
    /// One layer for each file.
    pub(super) fn new(files: &[(&str, &[u8])]) -> TestImage {
        TestImage::for_platform(files, "amd64")
    }

    pub(super) fn for_platform(files: &[(&str, &[u8])], architecture: &str) -> TestImage {
        let plain: Vec<Vec<u8>> =
            files.iter().map(|(name, data)| TarBuilder::new().file(name, data).finish()).collect();
        let diff_ids: Vec<Digest> = plain.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-05-06T07:08:09Z",
            "config": { "Cmd": ["sh"] }, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string()
        .into_bytes();
        let packed: Vec<Vec<u8>> = plain.iter().map(|layer| gzip(layer)).collect();
        let layers: Vec<Value> = packed
            .iter()
            .map(|data| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", data))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config), "layers": layers,
        });
        let layer = packed.first().map_or(Digest::of(b""), |data| Digest::of(data));
        let blobs = packed.into_iter().chain([config]).map(|data| (Digest::of(&data), data));
        TestImage { blobs: blobs.collect(), manifest: manifest.to_string().into_bytes(), layer }
    }

    pub(super) fn layer_data(&self) -> Vec<u8> {
        self.blobs[0].1.clone()
    }
}

pub(super) fn descriptor(kind: &str, data: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(data), "size": data.len() })
}

/// An index over images for these platforms.
pub(super) fn index(images: &[(&str, &TestImage)]) -> Vec<u8> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(architecture, image)| {
            let mut descriptor = descriptor(OCI_MANIFEST, &image.manifest);
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            descriptor
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    index.to_string().into_bytes()
}

pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, the same each time.
pub(super) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

/// Short enough that a test of a deadline ends soon.
pub(super) fn hasty() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        first_byte: Duration::from_millis(400),
        stall: Duration::from_millis(400),
        stall_bytes: 4096,
        document: Duration::from_secs(5),
        attempts: 3,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_secs(2),
    }
}

pub(super) fn client() -> RegistryClient {
    client_with(RegistryOptions::default(), None)
}

pub(super) fn client_with(
    options: RegistryOptions,
    credentials: Option<&CredentialStore>,
) -> RegistryClient {
    let options = RegistryOptions { patience: hasty(), ..options };
    let nobody = CredentialStore::at("/nonexistent/config.json");
    RegistryClient::new(options, credentials.cloned().unwrap_or(nobody)).unwrap()
}

fn serve(inner: &Inner, mut stream: TcpStream) {
    let mut first = [0; 1];
    // A TLS client's greeting: this server has none.
    if !matches!(stream.peek(&mut first), Ok(1)) || first[0] == 0x16 {
        return;
    }
    while let Some(asked) = read_request(&mut stream) {
        let before = {
            let mut log = inner.asked.lock().unwrap();
            let same =
                |earlier: &&Asked| earlier.method == asked.method && earlier.path == asked.path;
            let before = log.iter().filter(same).count();
            log.push(asked.clone());
            before
        };
        let scripted = inner.script.lock().unwrap().as_ref().and_then(|s| s(&asked, before));
        let reply = scripted.unwrap_or_else(|| honest(inner, &asked));
        if !write_reply(&mut stream, &asked, reply) {
            return;
        }
    }
}

fn honest(inner: &Inner, asked: &Asked) -> Reply {
    if asked.path == "/v2/" {
        return answer(200, "{}");
    }
    let content = inner.content.lock().unwrap();
    let path = asked.path.strip_prefix("/v2/").unwrap_or_default();
    let Some((kind, data)) = content.get(path) else {
        return answer(404, r#"{"errors":[{"code":"UNKNOWN","message":"it is unknown"}]}"#);
    };
    let mut headers = vec![("Content-Type".to_owned(), kind.clone())];
    let range = asked.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-'));
    match range.and_then(|from| from.parse::<usize>().ok()) {
        Some(from) if from < data.len() => {
            let range = format!("bytes {from}-{}/{}", data.len() - 1, data.len());
            headers.push(("Content-Range".into(), range));
            Reply::Answer { status: 206, headers, body: data[from..].to_vec() }
        }
        _ => Reply::Answer { status: 200, headers, body: data.clone() },
    }
}

fn read_request(stream: &mut TcpStream) -> Option<Asked> {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Asked { method, path, headers, body })
}

/// Whether the connection may be used again.
fn write_reply(stream: &mut TcpStream, asked: &Asked, reply: Reply) -> bool {
    let head = |status: u16, headers: &[(String, String)], length: u64| {
        let mut head = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    };
    match reply {
        Reply::Answer { status, headers, body } => {
            let head = head(status, &headers, body.len() as u64);
            let body: &[u8] = if asked.method == "HEAD" { b"" } else { &body };
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_ok()
        }
        Reply::Cut { headers, promised, body } => {
            let head = head(200, &headers, promised);
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            false
        }
        Reply::Drip { body, pause } => {
            let head = head(200, &[], body.len() as u64);
            let _ = stream.write_all(head.as_bytes());
            for byte in body {
                if stream.write_all(&[byte]).is_err() {
                    return false;
                }
                thread::sleep(pause);
            }
            true
        }
        Reply::Silence => {
            // Until the client closes.
            let _ = stream.read(&mut [0; 1]);
            false
        }
        Reply::Hangup => false,
    }
}
