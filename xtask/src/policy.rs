//! What may be in the dependency tree: licences, sources, and crates of which there is
//! one version.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::process;

/// Licences that go with Apache-2.0. An SPDX expression passes if one of its `OR`
/// alternatives has only these.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "0BSD",
];

/// Two of these would not fit together.
const ONE_VERSION: &[&str] =
    &["vm-memory", "virtio-queue", "kvm-bindings", "kvm-ioctls", "vmm-sys-util"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

pub(crate) fn check() -> anyhow::Result<()> {
    let printed =
        process::output(&mut process::cargo(["metadata", "--format-version", "1", "--locked"]))
            .context("list the dependencies (does Cargo.lock match the manifests?)")?;
    let metadata: Metadata = serde_json::from_str(&printed).context("read cargo's metadata")?;
    let problems = problems(&metadata.packages);
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

fn problems(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    for package in packages {
        versions.entry(&package.name).or_default().push(&package.version);
        let name = format!("{} {}", package.name, package.version);
        if let Some(source) = &package.source
            && !source.starts_with("registry+")
        {
            problems.push(format!("{name} comes from {source}, not from the registry"));
        }
        match &package.license {
            Some(licence) if allowed(licence) => {}
            Some(licence) => problems.push(format!("{name}: the licence {licence} is not allowed")),
            None => problems.push(format!("{name} states no licence")),
        }
    }
    for name in ONE_VERSION {
        if let Some(versions) = versions.get(name)
            && versions.len() > 1
        {
            problems.push(format!("{name} is there in versions {}", versions.join(" and ")));
        }
    }
    problems
}

fn allowed(expression: &str) -> bool {
    // Old manifests write "MIT/Apache-2.0" for OR.
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    expression.split(" OR ").any(|alternative| {
        alternative.split(" AND ").all(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: &str, source: Option<&str>) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            license: Some(license.into()),
            source: source.map(Into::into),
        }
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert!(allowed("GPL-2.0 OR MIT"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!allowed("GPL-2.0"));
        assert!(!allowed("MIT AND GPL-2.0"));
    }

    #[test]
    fn a_git_source_a_foreign_licence_and_a_second_copy_are_each_named() {
        let problems = problems(&[
            package("a", "1.0.0", "MIT", Some("git+ssh://example")),
            package("b", "1.0.0", "GPL-3.0", None),
            package("vm-memory", "0.17.1", "Apache-2.0", None),
            package("vm-memory", "0.18.0", "Apache-2.0", None),
        ]);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[2].contains("0.17.1 and 0.18.0"));
    }
}
