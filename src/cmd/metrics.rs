//! `rt metrics`: what containers use, for Prometheus to fetch.
//!
//! One connection at a time, one answer each: whoever asks is counted at that moment. A request is at most 8 KiB and has
//! five seconds; nothing of it but its first line is looked at.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::Global;
use crate::config::Config;
use crate::container::{self, Status, Store, Usage};

const MAX_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where to listen; there is no access control: keep it on the host
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9899")]
    listen: SocketAddr,
}

impl Arguments {
    pub fn run(&self, global: &Global, config: &Config) -> anyhow::Result<u8> {
        let listener = TcpListener::bind(self.listen);
        let listener = listener.with_context(|| format!("cannot listen on {}", self.listen))?;
        let store = global.store();
        // Port 0 lets the kernel choose: then this is how to know.
        eprintln!("listening on http://{}/metrics", listener.local_addr()?);
        loop {
            match listener.accept() {
                Ok((connection, _)) => {
                    if let Err(error) = serve(connection, &store, config) {
                        tracing::debug!("a request was not answered: {error}");
                    }
                }
                // Such as too many open files: not to be spun on.
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }
}

fn serve(mut connection: TcpStream, store: &Store, config: &Config) -> io::Result<()> {
    connection.set_write_timeout(Some(PATIENCE))?;
    let request = request(&mut connection)?;
    let mut words = request.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, text) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => match measure(store, config) {
            Ok(text) => ("200 OK", text),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        ("GET" | "HEAD", _) => ("404 Not Found", "the metrics are at /metrics\n".into()),
        _ => ("405 Method Not Allowed", "GET only\n".into()),
    };
    let kind =
        if status.starts_with("200") { "text/plain; version=0.0.4; charset=utf-8" } else { "text/plain" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    connection.write_all(head.as_bytes())?;
    if method != "HEAD" {
        connection.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// The head of a request.
fn request(connection: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        connection.set_read_timeout(Some(left))?;
        match connection.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => request.extend(&buffer[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

fn measure(store: &Store, config: &Config) -> Result<String, container::Error> {
    let begin = Instant::now();
    let usages = container::usage(store, config, &[])?;
    Ok(text(&usages, begin.elapsed()))
}

/// The text exposition format. IDs consist of letters, digits and `_+-.`, so no label needs escapes.
fn text(usages: &[Usage], took: Duration) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Usage) -> Option<f64>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for usage in usages {
            if let Some(value) = value(usage) {
                let _ = writeln!(text, "{name}{{id=\"{}\"}} {value}", usage.id);
            }
        }
    };
    let seconds = |ns: u64| ns as f64 / 1e9;
    family(
        "rt_container_cpu_seconds_total",
        "counter",
        "Processor time of the container, as its guest counts it.",
        &|usage| Some(seconds(usage.guest?.cpu_ns)),
    );
    family(
        "rt_container_memory_bytes",
        "gauge",
        "Memory of the container, as its guest counts it.",
        &|usage| Some(usage.guest?.memory_bytes as f64),
    );
    family("rt_container_memory_limit_bytes", "gauge", "Memory limit of the container.", &|usage| {
        Some(usage.guest?.memory_limit_bytes? as f64)
    });
    family("rt_container_pids", "gauge", "Processes and threads of the container.", &|usage| {
        Some(usage.guest?.pids as f64)
    });
    family("rt_container_guest_up", "gauge", "Whether the guest answers.", &|usage| {
        Some(usage.guest.is_some().into())
    });
    family(
        "rt_sandbox_cpu_seconds_total",
        "counter",
        "Processor time of the sandbox's processes on the host.",
        &|usage| Some(seconds(usage.host.cpu_ns)),
    );
    family(
        "rt_sandbox_memory_bytes",
        "gauge",
        "Memory of the sandbox's processes on the host, shared pages divided.",
        &|usage| Some(usage.host.memory_bytes as f64),
    );
    family("rt_sandbox_processes", "gauge", "Processes of the sandbox on the host.", &|usage| {
        Some(usage.host.processes as f64)
    });
    family("rt_sandbox_disk_read_bytes_total", "counter", "Read from storage by the sandbox.", &|usage| {
        Some(usage.host.disk_read_bytes as f64)
    });
    family(
        "rt_sandbox_disk_written_bytes_total",
        "counter",
        "Written to storage by the sandbox.",
        &|usage| Some(usage.host.disk_written_bytes as f64),
    );
    family(
        "rt_sandbox_network_received_bytes_total",
        "counter",
        "Received through the container's interfaces.",
        &|usage| Some(usage.host.net_received_bytes as f64),
    );
    family(
        "rt_sandbox_network_sent_bytes_total",
        "counter",
        "Sent through the container's interfaces.",
        &|usage| Some(usage.host.net_sent_bytes as f64),
    );
    let _ = writeln!(text, "# HELP rt_containers Containers by status.\n# TYPE rt_containers gauge");
    for status in [Status::Creating, Status::Created, Status::Running, Status::Paused] {
        let count = usages.iter().filter(|usage| usage.status == status).count();
        let _ = writeln!(text, "rt_containers{{status=\"{status}\"}} {count}");
    }
    let took = took.as_secs_f64();
    let _ = writeln!(
        text,
        "# HELP rt_scrape_duration_seconds How long this took.\n# TYPE rt_scrape_duration_seconds gauge\nrt_scrape_duration_seconds {took}"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{GuestUsage, HostUsage};

    #[test]
    fn families_are_in_prometheus_form() {
        let guest =
            GuestUsage { cpu_ns: 1_500_000_000, memory_bytes: 4096, memory_limit_bytes: None, pids: 2 };
        let usage = |id: &str, guest| Usage {
            id: id.into(),
            status: Status::Running,
            guest,
            host: HostUsage { memory_bytes: 1 << 20, ..HostUsage::default() },
        };
        let text = text(&[usage("a", Some(guest)), usage("b", None)], Duration::from_millis(5));
        for line in [
            "# TYPE rt_container_cpu_seconds_total counter",
            "rt_container_cpu_seconds_total{id=\"a\"} 1.5",
            "rt_container_guest_up{id=\"b\"} 0",
            "rt_sandbox_memory_bytes{id=\"b\"} 1048576",
            "rt_containers{status=\"running\"} 2",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
        assert!(!text.contains("rt_container_memory_bytes{id=\"b\"}") && text.ends_with("0.005\n"), "{text}");
    }

    #[test]
    fn whoever_does_not_speak_http_gets_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(&[b'x'; 20_000]).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(request(&mut server).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert!(request(&mut server).unwrap().starts_with("GET /metrics"));
    }
}
