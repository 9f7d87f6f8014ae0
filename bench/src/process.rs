//! CPU time, memory and startup time of processes. Linux only: the figures come from `/proc`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::{sleep, timeout};

use crate::client::HttpConnection;

/// A process that is killed on drop.
pub(crate) struct KillOnDrop(pub(crate) Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // The process may have ended already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the CPU time of a process and its children in seconds.
///
/// A PostgreSQL server is many processes. `/proc` counts its ended processes with their parent.
pub(crate) fn cpu_s(pid: &str) -> Result<f64> {
    let [own, ended_children] = cpu_times_s(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // A child that ends between the two reads is missed until its parent has waited for it.
    let living_children: f64 = children.split_whitespace().filter_map(|child| own_cpu_s(child).ok()).sum();
    Ok(own + ended_children + living_children)
}

/// Returns the CPU time of a process without its children, in seconds.
pub(crate) fn own_cpu_s(pid: &str) -> Result<f64> {
    Ok(cpu_times_s(pid)?[0])
}

/// Returns the CPU time of the process, and of its ended children, in seconds.
fn cpu_times_s(pid: &str) -> Result<[f64; 2]> {
    /// Unit of `/proc` on every current Linux (`getconf CLK_TCK`).
    const TICKS_PER_S: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} has ended"))?;
    // The line is `PID (NAME) STATE …`. NAME may contain any character. Fields 14 to 17 are the times: user and system
    // time of the process, then of its ended children.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(4).filter_map(|ticks| ticks.parse().ok()).collect();
    let [user, system, ended_user, ended_system] = ticks[..] else { bail!("/proc/{pid}/stat has no CPU times") };
    Ok([(user + system) / TICKS_PER_S, (ended_user + ended_system) / TICKS_PER_S])
}

/// Returns the highest memory use of a process so far, in MiB.
pub(crate) fn peak_mib(pid: &str) -> Result<f64> {
    memory_mib(pid, "VmHWM:")
}

/// Returns the current memory use of a process, in MiB.
pub(crate) fn resident_mib(pid: &str) -> Result<f64> {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: &str, key: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("process {pid} has ended"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{path} has no {key}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Returns the milliseconds from the start of `program` until `/readyz` answers 200. Kills the program then.
///
/// # Errors
/// Fails if the program ends first, or is not ready after 30 seconds.
pub(crate) async fn ready_ms(program: &Path, folder: &Path, config: &str) -> Result<f64> {
    // Another process may take the port first. Then the program reports the error and ends.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let config_file = folder.join("ready.toml");
    fs::write(&config_file, config.replace("127.0.0.1:0", &address))?;
    let mut client = HttpConnection::new(&format!("http://{address}/"))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&config_file).current_dir(folder).stderr(Stdio::null());
    let started = Instant::now();
    let mut process = KillOnDrop(command.spawn()?);
    let ready = async {
        while client.get("/readyz", |_| {}).await.ok() != Some(200) {
            if let Some(status) = process.0.try_wait()? {
                bail!("the program ended with {status} before it was ready");
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    };
    timeout(Duration::from_secs(30), ready).await.context("the program is not ready after 30 s")?
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_and_memory_of_a_busy_process_grow() {
        let me = std::process::id().to_string();
        let (cpu, peak) = (own_cpu_s(&me).unwrap(), peak_mib(&me).unwrap());
        let memory = vec![1u8; 64 << 20];
        let end = Instant::now() + Duration::from_secs(10);
        while own_cpu_s(&me).unwrap() < cpu + 0.05 {
            assert!(Instant::now() < end, "the CPU time of a busy process does not grow");
            std::hint::black_box(memory.iter().map(|&byte| u64::from(byte)).sum::<u64>());
        }
        assert!(peak_mib(&me).unwrap() >= peak.max(64.0));
        assert!(resident_mib(&me).unwrap() >= 64.0);
    }
}
