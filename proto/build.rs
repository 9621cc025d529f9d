//! Generates the wire types from `proto/vp/v1/*.proto`; needs `protoc` on the path.
fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(
        &["proto/vp/v1/common.proto", "proto/vp/v1/agents.proto", "proto/vp/v1/peers.proto", "proto/vp/v1/coordinators.proto", "proto/vp/v1/operators.proto"],
        &["proto"],
    )
}
