//! Size of the EC2 instance types that a local region knows, after the EC2 User Guide's tables.

/// vCPUs and memory of an instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

const TABLE: [(&str, u32, u64); 14] = [
    ("t3.nano", 2, 512),
    ("t3.micro", 2, 1024),
    ("t3.small", 2, 2048),
    ("t3.medium", 2, 4096),
    ("t3.large", 2, 8192),
    ("t3.xlarge", 4, 16384),
    ("m6i.large", 2, 8192),
    ("m6i.xlarge", 4, 16384),
    ("m6i.2xlarge", 8, 32768),
    ("c6i.large", 2, 4096),
    ("c6i.xlarge", 4, 8192),
    ("c6i.2xlarge", 8, 16384),
    ("r6i.large", 2, 16384),
    ("r6i.xlarge", 4, 32768),
];

/// The size of a type; `None` for one that is not in the table.
pub fn size(instance_type: &str) -> Option<Size> {
    TABLE.iter().find(|(name, ..)| *name == instance_type).map(|&(_, vcpus, memory_mib)| Size { vcpus, memory_mib })
}

/// The known types, for messages.
pub fn known() -> Vec<&'static str> {
    TABLE.iter().map(|(name, ..)| *name).collect()
}
