//! CUDA
mod hooks;
mod probe;
