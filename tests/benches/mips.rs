//! Instructions a second.

fn main() {}
