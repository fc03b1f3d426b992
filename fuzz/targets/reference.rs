//! Names and digests: what is taken is what is shown, and no digest leaves its directory.

#![no_main]

use caisson_rootfs::{Digest, Reference};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(String),
    Parts { host: u8, path: Vec<u8>, tag: Option<String>, digest: Option<Hex> },
    Digest(Hex),
}

#[derive(Arbitrary, Debug)]
struct Hex {
    sha512: bool,
    bytes: [u8; 16],
    length: u8,
    odd: Option<(u8, char)>,
}

const HOSTS: [&str; 6] = ["", "docker.io/", "localhost/", "example.com:5000/", "[::1]:80/", "A/"];
const NAMES: [&str; 6] = ["library", "debian", "a__b", "x-y.z", "UP", ".."];

impl Hex {
    fn text(&self) -> String {
        let (name, length) = if self.sha512 { ("sha512", 128) } else { ("sha256", 64) };
        let digits = self.bytes.iter().flat_map(|b| format!("{b:02x}").into_bytes()).cycle();
        let length = if self.length < 250 { length } else { usize::from(self.length) };
        let mut hex: Vec<char> = digits.take(length).map(char::from).collect();
        if let Some((place, odd)) = self.odd {
            let length = hex.len();
            hex[usize::from(place) % length] = odd;
        }
        format!("{name}:{}", hex.into_iter().collect::<String>())
    }
}

fuzz_target!(|input: Input| {
    let text = match &input {
        Input::Raw(text) => text.clone(),
        Input::Digest(hex) => hex.text(),
        Input::Parts { host, path, tag, digest } => {
            let names: Vec<&str> =
                path.iter().take(5).map(|name| NAMES[usize::from(*name) % 6]).collect();
            let tag = tag.as_ref().map_or(String::new(), |tag| format!(":{tag}"));
            let digest = digest.as_ref().map_or(String::new(), |hex| format!("@{}", hex.text()));
            format!("{}{}{tag}{digest}", HOSTS[usize::from(*host) % 6], names.join("/"))
        }
    };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        let hex = digest.hex();
        assert!([64, 128].contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let shown = reference.to_string();
        assert_eq!(shown.parse::<Reference>().as_ref(), Ok(&reference), "{shown}");
        assert_eq!(reference.familiar().parse::<Reference>().as_ref(), Ok(&reference), "{shown}");
        assert!(!shown.split('/').any(|part| part == ".." || part.is_empty()), "{shown}");
        assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()), "{shown:?}");
    }
});
