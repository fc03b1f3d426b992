//! A command of which one process is killed at a chosen moment, where the containers run.

use crate::{Host, Outcome};

/// Whom SIGKILL strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Shim,
    Vmm,
    /// The `caisson` of the command itself.
    Caller,
}

/// When.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// A process has stamped this stage (`$CAISSON_STAGES`).
    Stage(&'static str),
    /// The command has printed this.
    Output(&'static str),
    /// This shell condition holds; `$C` is `caisson`.
    Holds(&'static str),
    AfterMillis(u32),
}

/// Runs `caisson` with these words of a shell, kills at the moment, and returns how the
/// command ended. A moment that does not come within 30 s ends it with code 99.
pub fn kill(host: &Host, victim: Victim, moment: Moment, words: &str) -> Outcome {
    let condition = match moment {
        Moment::Stage(stage) => format!("grep -q '\"stage\":\"{stage}\"' $D/stages"),
        Moment::Output(text) => format!("grep -q '{text}' $D/out"),
        Moment::Holds(condition) => condition.to_owned(),
        Moment::AfterMillis(millis) => {
            format!("sleep {}.{:03}", millis / 1000, millis % 1000)
        }
    };
    let target = match victim {
        Victim::Shim => "$(pidof containerd-shim-caisson-v2)",
        Victim::Vmm => "$(pidof caisson-vmm)",
        Victim::Caller => "$caller",
    };
    let script = format!(
        "D=$(mktemp -d); {caisson}
         CAISSON_STAGES=$D/stages $C {words} >$D/out 2>$D/err </dev/null & caller=$!
         tries=0
         until {{ {condition}; }} 2>/dev/null; do
             tries=$((tries + 1)); sleep 0.02
             if [ $tries -gt 1500 ]; then kill $caller; echo 'the moment did not come' >>$D/err; break; fi
         done
         [ $tries -gt 1500 ] || kill -9 {target}
         wait $caller; code=$?
         [ $tries -gt 1500 ] && code=99
         cat $D/out; cat $D/err >&2; rm -r $D; exit $code",
        caisson = host.shell_variable(),
    );
    host.inside(&script)
}
