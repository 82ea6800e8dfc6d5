//! rt's own VMM on KVM.
