//! Generates the wire types from `proto/vp/v1/*.proto`; needs `protoc` on the path.
fn main() -> std::io::Result<()> {
    tonic_prost_build::configure().compile_protos(
        &["common", "enrolment", "agents", "peers", "coordinators", "operators"].map(|file| format!("proto/vp/v1/{file}.proto")),
        &["proto".to_owned()],
    )
}
