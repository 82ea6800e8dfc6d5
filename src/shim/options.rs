//! What containerd's configuration says for this runtime: `ConfigPath` of the runtime's options, or `ctr run
//! --runtime-config-path`.

use std::path::Path;

use containerd_shim_protos::protobuf::rt::WireType;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream};

use super::Error;
use crate::config::Config;

/// containerd's message for runtimes that it does not know, under the names that its versions gave it.
const GENERIC: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];
/// Its second field.
const CONFIG_PATH: u32 = 2;

/// The configuration for a container: of the file that the options name, else rt's own.
///
/// # Errors
/// [`Error::Options`] for options that are not for this runtime; [`Error::Config`].
pub fn config(options: Option<&Any>) -> Result<Config, Error> {
    let path = match options.filter(|options| !options.value.is_empty()) {
        Some(options) => config_path(options)?,
        None => String::new(),
    };
    match path.is_empty() {
        true => Ok(Config::load(&[])?),
        false => Ok(Config::load_from(Some(Path::new(&path)), &[])?),
    }
}

fn config_path(options: &Any) -> Result<String, Error> {
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    if !GENERIC.contains(&name) {
        return Err(Error::Options(format!(
            "the runtime's options are {name:?}, which are another runtime's; rt's only option is ConfigPath"
        )));
    }
    parse(&options.value).map_err(|error| Error::Options(format!("the runtime's options: {error}")))
}

fn parse(bytes: &[u8]) -> protobuf::Result<String> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut path = String::new();
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match (tag >> 3, WireType::new(tag & 7)) {
            (CONFIG_PATH, Some(WireType::LengthDelimited)) => path = input.read_string()?,
            (_, Some(other)) => input.skip_field(other)?,
            (_, None) => break,
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn the_path_is_found_beside_other_fields() {
        let body = b"\x0a\x01t\x12\x07/a/toml\x1a\x02ab";
        assert_eq!(config_path(&options("runtimeoptions.v1.Options", body)).unwrap(), "/a/toml");
        assert_eq!(config_path(&options("x/cri.runtimeoptions.v1.Options", b"")).unwrap(), "");
    }

    #[test]
    fn other_options_are_refused_and_bad_ones_do_no_harm() {
        let error = config_path(&options("containerd.runc.v1.Options", b"\x08\x01")).unwrap_err();
        assert!(error.to_string().contains("another runtime's"), "{error}");
        for bad in [&b"\x12\xff\xff\xff\xff\x7f"[..], b"\x12", b"\xff", b"\x12\x01\xff"] {
            assert!(config_path(&options(GENERIC[0], bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_configuration_that_is_not_there_is_named() {
        let error = config(Some(&options(GENERIC[0], b"\x12\x05/no/t"))).unwrap_err().to_string();
        assert!(error.contains("/no/t"), "{error}");
    }
}
