//! pxvm as a library.
