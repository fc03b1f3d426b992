//! `--platform`: `os/architecture[/variant]`.

use std::fmt;
use std::str::FromStr;

use super::error::RegistryError;
use crate::manifest::Platform;

/// The platform whose image is wanted; by default the one of the guests, linux/amd64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Default for WantedPlatform {
    fn default() -> WantedPlatform {
        WantedPlatform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }
}

impl FromStr for WantedPlatform {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<WantedPlatform, RegistryError> {
        let invalid = || RegistryError::PlatformName(text.chars().take(100).collect());
        let is_word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<String> = text.split('/').map(str::to_ascii_lowercase).collect();
        if !parts.iter().all(|part| is_word(part)) {
            return Err(invalid());
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [os] if os == "linux" => (os.as_str(), "amd64", None),
            [architecture] => ("linux", architecture.as_str(), None),
            [os, architecture] => (os.as_str(), architecture.as_str(), None),
            [os, architecture, variant] => {
                (os.as_str(), architecture.as_str(), Some(variant.clone()))
            }
            _ => return Err(invalid()),
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        };
        Ok(WantedPlatform { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for WantedPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl WantedPlatform {
    /// How well an image for `platform` fits: `None` not at all, the lowest best.
    pub(crate) fn rank(&self, platform: &Platform) -> Option<u8> {
        if platform.os != self.os || platform.architecture != self.architecture {
            return None;
        }
        let usual = match self.architecture.as_str() {
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            _ => None,
        };
        let offered = platform.variant.as_deref().filter(|v| !v.is_empty()).or(usual);
        match self.variant.as_deref().or(usual) {
            Some(wanted) if Some(wanted) == offered => Some(0),
            Some(_) if self.variant.is_some() => None,
            Some(_) => Some(1),
            // amd64 and others without a usual variant.
            None => platform.rank().or(Some(u8::from(offered.is_some()))),
        }
    }

    /// As a configuration states it; what it leaves open fits.
    pub(crate) fn fits_config(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os)
            && (architecture.is_empty() || architecture == self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
        }
    }

    #[test]
    fn platforms_are_read_as_docker_reads_them() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("Linux/aarch64/v8", "linux/arm64/v8"),
            ("linux/x86_64", "linux/amd64"),
        ] {
            assert_eq!(text.parse::<WantedPlatform>().unwrap().to_string(), shown);
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/../x", "linux/am d"] {
            assert!(bad.parse::<WantedPlatform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_variant_decides_among_equals() {
        let rank = |wanted: &str, there: &str| {
            wanted.parse::<WantedPlatform>().unwrap().rank(&offered(there))
        };
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert!(rank("linux/amd64", "linux/amd64/v2") > rank("linux/amd64", "linux/amd64"));
        assert_eq!(rank("linux/amd64", "linux/arm64"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert!(rank("linux/arm", "linux/arm/v6") > rank("linux/arm", "linux/arm/v7"));
    }
}
