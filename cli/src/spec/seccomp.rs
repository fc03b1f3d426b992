//! Seccomp profiles in Docker's form, resolved to the runtime-spec's: which rules hold
//! depends on the container's capabilities.

use serde::Deserialize;
use serde_json::{Map, Value, json};

const DEFAULT_PROFILE: &str = include_str!("seccomp.json");

/// Docker's profile. Fields of the runtime-spec's own form are accepted too.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The guest's kernel, `(major, minor)`: newer than any profile asks for.
const GUEST_KERNEL: (u32, u32) = (6, 12);

/// The profile of a container without flags.
pub(super) fn default_profile(capabilities: &[String]) -> Value {
    parse(DEFAULT_PROFILE, capabilities).expect("the profile is compiled in and tested")
}

/// A profile's text for a container with these capabilities.
pub(super) fn parse(text: &str, capabilities: &[String]) -> Result<Value, serde_json::Error> {
    let profile: Profile = serde_json::from_str(text)?;
    let mut architectures = profile.architectures.clone();
    for map in profile.arch_map.iter().filter(|map| map.architecture == "SCMP_ARCH_X86_64") {
        architectures.push(map.architecture.clone());
        architectures.extend(map.sub_architectures.iter().cloned());
    }
    let holds = |rule: &&Rule| rule.holds(capabilities);
    let mut seccomp = json!({
        "defaultAction": profile.default_action,
        "architectures": architectures,
        "syscalls": profile.syscalls.iter().filter(holds).map(Rule::resolved).collect::<Vec<_>>(),
    });
    if let Some(errno) = profile.default_errno_ret {
        seccomp["defaultErrnoRet"] = errno.into();
    }
    if !profile.flags.is_empty() {
        seccomp["flags"] = profile.flags.into();
    }
    Ok(seccomp)
}

impl Rule {
    fn holds(&self, capabilities: &[String]) -> bool {
        let has = |cap: &String| capabilities.contains(cap);
        let is_here = |arch: &String| arch == "amd64";
        let includes = &self.includes;
        let is_included = includes.caps.iter().all(has)
            && (includes.arches.is_empty() || includes.arches.iter().any(is_here))
            && includes.min_kernel.as_deref().is_none_or(is_new_enough);
        let excludes = &self.excludes;
        let is_excluded = excludes.caps.iter().any(has)
            || excludes.arches.iter().any(is_here)
            || excludes.min_kernel.as_deref().is_some_and(is_new_enough);
        is_included && !is_excluded
    }

    fn resolved(&self) -> Value {
        let names: Vec<&String> = self.names.iter().chain(&self.name).collect();
        let mut rule = Map::new();
        rule.insert("names".into(), json!(names));
        rule.insert("action".into(), json!(self.action));
        if let Some(errno) = self.errno_ret {
            rule.insert("errnoRet".into(), json!(errno));
        }
        let args: Vec<Value> = self.args.iter().flatten().map(Argument::resolved).collect();
        if !args.is_empty() {
            rule.insert("args".into(), json!(args));
        }
        rule.into()
    }
}

impl Argument {
    fn resolved(&self) -> Value {
        json!({ "index": self.index, "value": self.value, "valueTwo": self.value_two, "op": self.op })
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) <= GUEST_KERNEL
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_for(name: &str, capabilities: &[&str]) -> Vec<Value> {
        let capabilities: Vec<String> = capabilities.iter().map(|&cap| cap.to_owned()).collect();
        let profile = default_profile(&capabilities);
        let rules = profile["syscalls"].as_array().expect("rules");
        let names =
            |rule: &&Value| rule["names"].as_array().is_some_and(|n| n.contains(&name.into()));
        rules.iter().filter(names).cloned().collect()
    }

    #[test]
    fn capabilities_open_their_calls() {
        assert_eq!(rules_for("read", &[]).len(), 1);
        assert!(rules_for("mount", &[]).is_empty());
        assert_eq!(rules_for("mount", &["CAP_SYS_ADMIN"]).len(), 1);
        assert!(rules_for("reboot", &["CAP_SYS_ADMIN"]).is_empty());
        assert!(rules_for("io_uring_setup", &["CAP_SYS_ADMIN"]).is_empty());
    }

    #[test]
    fn clone_makes_no_namespaces_without_the_capability() {
        let without = rules_for("clone", &[]);
        assert_eq!(without.len(), 1);
        assert_eq!(without[0]["args"][0]["value"], 0x7E02_0000_u32);
        assert_eq!(rules_for("clone3", &[])[0]["errnoRet"], 38);
        let with = rules_for("clone", &["CAP_SYS_ADMIN"]);
        assert_eq!(with.len(), 1);
        assert!(with[0].get("args").is_none());
        assert_eq!(rules_for("clone3", &["CAP_SYS_ADMIN"])[0]["action"], "SCMP_ACT_ALLOW");
    }

    #[test]
    fn other_architectures_rules_and_newer_kernels_do_not_hold() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"name": "a", "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["arm"]}},
            {"names": ["b"], "action": "SCMP_ACT_ERRNO", "excludes": {"arches": ["amd64"]}},
            {"names": ["c"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "7.0"}},
            {"name": "d", "action": "SCMP_ACT_ERRNO", "args": null, "includes": {"minKernel": "4.8"}}
        ]}"#;
        let profile = parse(text, &[]).expect("a profile");
        assert_eq!(profile["syscalls"], json!([{"names": ["d"], "action": "SCMP_ACT_ERRNO"}]));
        assert!(parse("{}", &[]).is_err());
        assert!(parse("no json", &[]).is_err());
    }
}
