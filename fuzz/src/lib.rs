//! What the fuzzers check, as plain functions of bytes: the fuzz targets call them, and so does an ordinary test with
//! the corpus that is kept in the repository.

pub mod bytes;
pub mod decode;
pub mod engine;
pub mod rest_json;
pub mod wheel;
