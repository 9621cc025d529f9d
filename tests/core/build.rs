//! Generates the messages of the register service and of the part of etcd's API that is measured beside it; needs `protoc`.
fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(&["proto/registers.proto", "proto/etcd.proto"], &["proto"])
}
