//! QEMU as the VMM.
