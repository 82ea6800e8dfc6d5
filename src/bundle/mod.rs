//! (bundle)
