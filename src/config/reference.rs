//! docs/configuration.md and docs/annotations.md, from the tables that the code itself uses.

use std::fmt::Write as _;

use super::annotations::{ANNOTATIONS, Conversion, HARMLESS, Meaning, PREFIX, short};
use super::settings::sections;
use super::{Config, SETTINGS, Setting};

const HEAD: &str = "\
# Configuration

*Made by `rt config reference`; do not edit.*

rt needs no configuration. What there is comes in five layers, each later one wins:

1. `/etc/rt/config.toml`, or the file that `RT_CONFIG` names;
2. `config.d/*.toml` beside that file, in the order of their names;
3. the environment: `RT_SECTION_KEY`, such as `RT_HYPERVISOR_VCPUS=2`; names in a list stand between commas;
4. flags of the command line;
5. annotations of the bundle, as far as `runtime.enable_annotations` allows: [annotations.md](annotations.md).

`rt config show --origin` prints every value that is in force, and where it comes from; with `--bundle` also what a bundle's
annotations change. Its output is a configuration. `rt config import FILE` converts Kata Containers' configuration.toml.

Nothing is ignored: a key that does not exist, a value of the wrong kind and settings that contradict each other are errors that
name file and line. Where a setting may be left open, the word for that is given as its default.
";

/// The reference of all settings.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    let defaults = Config::default().entries();
    for section in sections() {
        let _ = write!(
            text,
            "\n## `[{section}]`\n\n| key | default | what it has to be | what it does |\n|---|---|---|---|\n"
        );
        for (setting, entry) in SETTINGS.iter().zip(&defaults) {
            if let Some(key) = setting.key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
                let default = match setting.open {
                    Some((_, meaning)) => format!("`{}`: {meaning}", entry.value),
                    None => format!("`{}`", entry.value),
                };
                let _ = writeln!(text, "| `{key}` | {default} | {} | {} |", wanted(setting), setting.text);
            }
        }
    }
    text
}

fn wanted(setting: &Setting) -> String {
    setting.wanted().replace(" or \"", ", \"")
}

/// The page on Kata's annotations.
pub fn annotations_page() -> String {
    let mut text = format!(
        "# Annotations\n\n*Made by `rt config reference --annotations`; do not edit.*\n\n\
         rt understands the annotations of Kata Containers, `{PREFIX}.…`, where it has what they mean. They come from whoever \
         wrote the pod, who may be anybody: so a bundle may only use those whose last part is in `runtime.enable_annotations`. \
         One that is not is an error, and so is a value that would be one in a file.\n\n\
         By default these are allowed: {}. They choose among what the operator allows (`hypervisor.max_vcpus`, \
         `hypervisor.max_memory_mib`, the pod's cgroup) and how the pod's own files are cached, and touch nothing of the host. \
         The others are not, since they weaken the guest that the operator chose (kernel parameters), raise the operator's own \
         limits (maxima), fill the host's logs (the console) or tie up its processes (time limits).\n\n\
         containerd passes annotations on when its runtime's `pod_annotations` has `\"io.katacontainers.*\"`.\n\n\
         ## Understood\n\n| annotation | setting | value | allowed by default |\n|---|---|---|---|\n",
        HARMLESS.map(|name| format!("`{name}`")).join(", ")
    );
    for (name, meaning) in ANNOTATIONS {
        if let Meaning::Sets(key, conversion) = meaning {
            let value = match conversion {
                Conversion::Same => "as the setting's",
                Conversion::Ceiling => "a number, rounded up",
                Conversion::Append => "appended to the operator's",
                Conversion::Seconds => "seconds",
                Conversion::CacheMode => "`always`, `auto`, `never` or `none`",
            };
            let allowed = if HARMLESS.contains(&short(name)) { "yes" } else { "no" };
            let _ = writeln!(text, "| `{name}` | `{key}` | {value} | {allowed} |");
        }
    }
    text.push_str(
        "\n## Refused\n\nSomebody may rely on what these promise, or they reach into the host: an error, whatever the operator \
         allows.\n\n| annotation | why |\n|---|---|\n| (`io.katacontainers.config_path`) | rt takes its configuration from the \
         host's operator |\n",
    );
    for (name, meaning) in ANNOTATIONS {
        if let Meaning::Refused(why) = meaning {
            let _ = writeln!(text, "| `{name}` | {why} |");
        }
    }
    text.push_str(
        "\n## Without effect\n\nA warning in the log says so; as for every other annotation that begins like these and is not \
         listed here.\n\n| annotation | why |\n|---|---|\n",
    );
    for (name, meaning) in ANNOTATIONS {
        if let Meaning::None(why) = meaning {
            let _ = writeln!(text, "| `{name}` | {why} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_up_to_date() {
        let pages =
            [("configuration.md", reference(), ""), ("annotations.md", annotations_page(), " --annotations")];
        for (name, text, flag) in pages {
            let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
            let page = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                page == text,
                "docs/{name} is stale: run `target/release/rt config reference{flag} > docs/{name}`"
            );
        }
    }
}
