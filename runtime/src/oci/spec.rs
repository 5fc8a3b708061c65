//! `config.json` (runtime-spec 1.3) as it is written. What is known and not supported is listed so that it can be
//! refused by its name ([`super::refuse`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{OciError, file};

/// Longest `config.json` in bytes.
const CONFIG_MAX: u64 = 4 * 1024 * 1024;
/// The version this runtime writes.
pub const VERSION: &str = "1.3.0";

/// The document.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Spec {
    pub oci_version: String,
    pub process: Option<ProcessSpec>,
    pub root: Option<RootSpec>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    pub mounts: Vec<MountSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub linux: Option<Linux>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solaris: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zos: Option<Value>,
}

/// `process`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct ProcessSpec {
    pub terminal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    pub user: UserSpec,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<RlimitSpec>,
    pub no_new_privileges: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor_profile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPrioritySpec>,
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<AffinitySpec>,
}

/// `process.scheduler`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct SchedulerSpec {
    pub policy: String,
    pub nice: i32,
    pub priority: u32,
    #[serde(deserialize_with = "list")]
    pub flags: Vec<String>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// `process.ioPriority`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct IoPrioritySpec {
    pub class: String,
    pub priority: u16,
}

/// `process.execCPUAffinity`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct AffinitySpec {
    pub initial: String,
    #[serde(rename = "final")]
    pub last: String,
}

/// `process.consoleSize`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

/// `process.user`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct UserSpec {
    pub uid: u32,
    pub gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

/// One of `process.rlimits`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct RlimitSpec {
    #[serde(rename = "type")]
    pub kind: String,
    pub soft: u64,
    pub hard: u64,
}

/// `root`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct RootSpec {
    pub path: PathBuf,
    pub readonly: bool,
}

/// One of `mounts`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct MountSpec {
    pub destination: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    #[serde(rename = "uidMappings", skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<Mapping>,
    #[serde(rename = "gidMappings", skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<Mapping>,
}

/// `hooks`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Hook {
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u32>,
}

/// `linux`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Linux {
    pub namespaces: Vec<NamespaceSpec>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<Mapping>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<Mapping>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceSpec>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroups_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompSpec>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rootfs_propagation: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mount_label: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub time_offsets: BTreeMap<String, OffsetSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<PersonalitySpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_devices: Option<Value>,
}

/// One of `linux.timeOffsets`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct OffsetSpec {
    pub secs: i64,
    pub nanosecs: u32,
}

/// `linux.personality`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct PersonalitySpec {
    pub domain: String,
    #[serde(deserialize_with = "list")]
    pub flags: Vec<String>,
}

/// One of `linux.namespaces`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct NamespaceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// One of `linux.uidMappings` and `linux.gidMappings`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Mapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

/// One of `linux.devices`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct DeviceSpec {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    #[serde(rename = "fileMode", skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// `linux.resources`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct Resources {
    pub devices: Vec<DeviceRuleSpec>,
    pub memory: Option<MemorySpec>,
    pub cpu: Option<CpuSpec>,
    pub pids: Option<PidsSpec>,
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIoSpec>,
    pub hugepage_limits: Vec<HugepageSpec>,
    pub rdma: BTreeMap<String, RdmaSpec>,
    pub network: Option<Value>,
    pub unified: BTreeMap<String, String>,
}

/// One of `linux.resources.hugepageLimits`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct HugepageSpec {
    pub page_size: String,
    pub limit: u64,
}

/// One of `linux.resources.rdma`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct RdmaSpec {
    pub hca_handles: Option<u32>,
    pub hca_objects: Option<u32>,
}

/// One of `linux.resources.devices`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct DeviceRuleSpec {
    pub allow: bool,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub access: String,
}

/// `linux.resources.memory`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct MemorySpec {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    pub kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    pub use_hierarchy: Option<bool>,
    pub check_before_update: Option<bool>,
}

/// `linux.resources.cpu`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct CpuSpec {
    pub burst: Option<u64>,
    pub idle: Option<i64>,
    pub realtime_runtime: Option<i64>,
    pub realtime_period: Option<u64>,
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub period: Option<u64>,
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

/// `linux.resources.pids`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct PidsSpec {
    pub limit: Option<i64>,
}

/// `linux.resources.blockIO`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct BlockIoSpec {
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
    pub weight_device: Vec<WeightSpec>,
    pub throttle_read_bps_device: Vec<ThrottleSpec>,
    pub throttle_write_bps_device: Vec<ThrottleSpec>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<ThrottleSpec>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<ThrottleSpec>,
}

/// One of `linux.resources.blockIO.weightDevice`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct WeightSpec {
    pub major: u32,
    pub minor: u32,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

/// One throttled device.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct ThrottleSpec {
    pub major: u32,
    pub minor: u32,
    pub rate: u64,
}

/// `linux.seccomp`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct SeccompSpec {
    pub default_action: String,
    pub default_errno_ret: Option<u16>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub listener_metadata: String,
    pub syscalls: Vec<SyscallSpec>,
}

/// One of `linux.seccomp.syscalls`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct SyscallSpec {
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u16>,
    #[serde(deserialize_with = "arguments")]
    pub args: Vec<ArgumentSpec>,
    /// Docker's addition: the rule counts only where all of this is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub includes: Option<Circumstances>,
    /// Docker's addition: the rule counts only where none of this is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excludes: Option<Circumstances>,
}

/// When a rule of Docker's profile format counts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Circumstances {
    /// Capabilities of the container, `CAP_…`.
    #[serde(deserialize_with = "list")]
    pub caps: Vec<String>,
    /// Architectures as Go names them, `amd64`.
    #[serde(deserialize_with = "list")]
    pub arches: Vec<String>,
    /// Lowest kernel version. Every rule in use is satisfied by any kernel this runtime works on.
    pub min_kernel: Option<String>,
}

/// The same for arguments.
fn arguments<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<ArgumentSpec>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list that may be written as `null`, as Go writes empty ones.
fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One of `linux.seccomp.syscalls.args`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the specification documents its fields")]
pub struct ArgumentSpec {
    pub index: u8,
    pub value: u64,
    pub value_two: u64,
    pub op: String,
}

impl Spec {
    /// Reads a bundle's `config.json` and checks its version.
    ///
    /// # Errors
    /// When it is missing, longer than 4 MiB, no JSON of this form, or of another major version.
    pub fn load(bundle: &Path) -> Result<Self, OciError> {
        use std::io::Read;
        let path = bundle.join("config.json");
        let opened = std::fs::File::open(&path).map_err(file("open", &path))?;
        let mut text = Vec::new();
        opened.take(CONFIG_MAX + 1).read_to_end(&mut text).map_err(file("read", &path))?;
        if text.len() as u64 > CONFIG_MAX {
            return Err(OciError::Spec(format!("longer than {CONFIG_MAX} bytes")));
        }
        let spec: Self = serde_json::from_slice(&text).map_err(|source| OciError::Json { path, source })?;
        if spec.oci_version.split('.').next() != Some("1") {
            return Err(OciError::Spec(format!("ociVersion {:?} is not 1.x", spec.oci_version)));
        }
        Ok(spec)
    }
}
