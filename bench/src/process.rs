//! What processes use, from `/proc`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A process that is killed when it is dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds of CPU time that a process and its children have used. PostgreSQL's server is many processes, of which
/// those that have ended are counted with their parent.
pub(crate) fn cpu_s(pid: &str) -> Result<f64> {
    let ended_children = stat(pid)?[2..4].iter().sum::<f64>();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // One that ends meanwhile is missed until its parent knows.
    let living_children: f64 = children.split_whitespace().filter_map(|child| own_cpu_s(child).ok()).sum();
    Ok(own_cpu_s(pid)? + ended_children + living_children)
}

/// As [`cpu_s`], without children.
pub(crate) fn own_cpu_s(pid: &str) -> Result<f64> {
    Ok(stat(pid)?[..2].iter().sum())
}

/// User and system time in seconds, of the process and of its children that have ended.
fn stat(pid: &str) -> Result<[f64; 4]> {
    /// What `/proc` counts in on every Linux of today (`getconf CLK_TCK`).
    const TICKS_PER_S: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // `PID (NAME) STATE …`, and the name may hold anything. Times are fields 14 to 17.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let ticks: Vec<f64> = fields.split(' ').skip(11).take(4).filter_map(|ticks| ticks.parse().ok()).collect();
    let ticks: [f64; 4] = ticks.try_into().ok().context("/proc/PID/stat has no times")?;
    Ok(ticks.map(|ticks| ticks / TICKS_PER_S))
}

/// MiB of memory that a process has used at most.
pub(crate) fn peak_mib(pid: &str) -> Result<f64> {
    memory_mib(pid, "VmHWM:")
}

/// MiB of memory that a process uses now.
pub(crate) fn resident_mib(pid: &str) -> Result<f64> {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: &str, key: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Milliseconds from the start of `program` until `/readyz` answers 200. It is killed then.
pub(crate) fn ready_ms(program: &Path, folder: &Path, config: &str) -> Result<f64> {
    // Somebody may take the port first; then the program says so and ends.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config_file = folder.join("ready.toml");
    fs::write(&config_file, config.replace("127.0.0.1:0", &address.to_string()))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&config_file).current_dir(folder).stderr(Stdio::null());
    let started = Instant::now();
    let mut process = Killed(command.spawn()?);
    loop {
        if is_ready(&address.to_string()) {
            return Ok(started.elapsed().as_secs_f64() * 1000.0);
        }
        if let Some(status) = process.0.try_wait()? {
            bail!("the program ended with {status} before it was ready");
        }
        if started.elapsed() > Duration::from_secs(30) {
            bail!("the program is not ready after 30 s");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_ready(address: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.ends_with(b" 200"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_of_a_process_grow_with_what_it_does() {
        let me = std::process::id().to_string();
        let (cpu, peak) = (own_cpu_s(&me).unwrap(), peak_mib(&me).unwrap());
        let memory = vec![1u8; 64 << 20];
        let end = Instant::now() + Duration::from_secs(10);
        while own_cpu_s(&me).unwrap() < cpu + 0.05 {
            assert!(Instant::now() < end, "it works, so its time grows");
            std::hint::black_box(memory.iter().map(|&byte| u64::from(byte)).sum::<u64>());
        }
        assert!(peak_mib(&me).unwrap() >= peak.max(64.0));
        assert!(resident_mib(&me).unwrap() >= 64.0);
    }
}
