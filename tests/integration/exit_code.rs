//! rt's exit code is the process's.

use crate::shell::{Bundle, without};

#[test]
fn the_process_exit_code_is_rts() {
    Bundle::new().run(&["/bin/true"]).code(0).stdout("").stderr("");
    let mut bundle = Bundle::new();
    for code in [42, 255] {
        bundle.sh(&format!("exit {code}")).code(code).stdout("").stderr("");
    }
}

/// Without a PID namespace of its own the process is not its first, so that signals sent inside end it.
#[test]
fn a_signal_that_ends_the_process_is_128_and_its_number() {
    let mut bundle = Bundle::new();
    without(&mut bundle.config["linux"]["namespaces"], |namespace| namespace["type"] == "pid");
    bundle.sh("kill -TERM $$; sleep 10").code(128 + 15).stderr("");
    bundle.sh("kill -KILL $$; sleep 10").code(128 + 9).stderr("");
}

#[test]
fn output_written_just_before_the_end_is_not_lost() {
    let mut bundle = Bundle::new();
    bundle.sh("printf out; printf err >&2; exit 3").code(3).stdout("out").stderr("err");
}

#[test]
fn what_still_runs_ends_with_the_process() {
    let mut bundle = Bundle::new();
    bundle.sh("sleep 1000 & sleep 1000 >/dev/null & echo done").says(&["done"]);
}
