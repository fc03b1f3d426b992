//! `features`: what this runtime can do (runtime-spec, features.md).

use caisson_shim::containerd::features;
use serde_json::json;

/// The shim's, and what is done here.
pub(super) fn json() -> String {
    let mut features = features();
    features["hooks"] = json!(["prestart", "createRuntime", "poststart", "poststop"]);
    features["mountOptions"] =
        json!(["bind", "dev", "exec", "nodev", "noexec", "nosuid", "rbind", "ro", "rw", "suid"]);
    format!("{features:#}")
}
