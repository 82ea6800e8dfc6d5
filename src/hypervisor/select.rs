//! temp
use super::*;
pub fn select(
    _wanted: Option<Kind>,
    config: &crate::config::Hypervisor,
) -> Result<(Box<dyn Hypervisor>, Option<String>), Error> {
    let binary = qemu::find(config.qemu.as_deref())?;
    Ok((Box::new(qemu::Qemu { binary, accelerator: qemu::Accelerator::Tcg }), None))
}
