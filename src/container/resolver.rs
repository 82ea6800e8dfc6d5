//! docker's resolver for a container in a virtual machine.
//!
//! In the network namespace of a container on a network of the user's, docker listens on 127.0.0.11 and names that address in the container's
//! resolv.conf. The guest's loopback is another, so the agent listens there, and what is asked comes here on a stream; a thread in
//! that namespace asks docker.
//!
//! The guest is an enemy: it can have docker's resolver asked anything, as a container of runc's can, and so much at once.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use rt_proto::resolver::{ADDRESS, Message, read_from_tcp, write_to_tcp};

use super::{Error, system};
use crate::agent::Agent;
use crate::bundle::Bundle;
use crate::net::Namespace;
use crate::sys::random;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Of a resolv.conf, what is read.
const LONGEST: u64 = 64 << 10;
/// Questions at once; what is more is lost, as a datagram may be.
const QUESTIONS: usize = 64;
/// docker waits for servers of its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// The names of one container.
pub struct Resolver {
    /// The host's file that the container sees as its resolv.conf.
    file: Option<PathBuf>,
    serves: bool,
}

impl Resolver {
    /// Of the container of this bundle.
    pub fn new(bundle: &Bundle) -> Self {
        let mut mounts = bundle.spec.mounts().iter().flatten();
        let mount = mounts.find(|mount| mount.destination() == Path::new(RESOLV_CONF));
        let file = mount.and_then(|mount| Some(bundle.dir.join(mount.source().as_ref()?)));
        Self { file, serves: false }
    }

    /// Serves from now on if the container has been told to ask docker. docker fills the network, and writes that file, after it has
    /// asked for the container.
    ///
    /// # Errors
    /// [`Error::Agent`], [`Error::System`], [`Error::Network`]
    pub fn catch_up(&mut self, namespace: &Namespace, agent: &Agent) -> Result<(), Error> {
        if self.serves || !self.file.as_deref().is_some_and(names_docker) {
            return Ok(());
        }
        let number = random::non_zero().map_err(system("make a name"))?;
        let stream = agent.open_stream(number)?;
        let namespace = namespace.try_clone()?;
        let serve = move || match namespace.enter() {
            Ok(()) => take_questions(stream),
            Err(error) => tracing::warn!("{}", crate::log::chain(&error)),
        };
        spawn(serve).map_err(system("start a thread for names"))?;
        agent.serve_names(number)?;
        self.serves = true;
        Ok(())
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    Builder::new().name("resolver".into()).stack_size(256 << 10).spawn(work).map(drop)
}

fn names_docker(file: &Path) -> bool {
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    let is_docker = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some(&ADDRESS.ip().to_string())
    };
    read.is_ok() && text.lines().any(is_docker)
}

/// Until the guest has gone. Threads start in the network namespace of the one that starts them.
fn take_questions(mut stream: UnixStream) {
    let Ok(answers) = stream.try_clone() else { return };
    let answers = Arc::new(Mutex::new(answers));
    while let Ok(question) = Message::read(&mut stream) {
        if Arc::strong_count(&answers) > QUESTIONS {
            continue;
        }
        let answers = Arc::clone(&answers);
        let answer = move || match ask(&question) {
            Ok(bytes) => {
                let answer = Message { bytes, ..question };
                // A guest that has gone needs none.
                let _ = answer.write(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
            }
            Err(error) => tracing::debug!("no answer of docker's resolver: {error}"),
        };
        if let Err(error) = spawn(answer) {
            // Not a warning: the guest asks as often as it likes.
            tracing::debug!("cannot start a thread for a question: {error}");
        }
    }
}

fn ask(question: &Message) -> io::Result<Vec<u8>> {
    if question.by_tcp {
        let mut connection = TcpStream::connect_timeout(&ADDRESS.into(), PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        write_to_tcp(&mut connection, &question.bytes)?;
        return read_from_tcp(&mut connection);
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(ADDRESS)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&question.bytes)?;
    let mut answer = vec![0; 1 << 16];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_says_whether_docker_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        assert!(!names_docker(&file));
        for (text, named) in [
            ("search a\nnameserver 127.0.0.11\noptions ndots:0\n", true),
            ("nameserver\t127.0.0.11", true),
            ("nameserver 127.0.0.1\n# nameserver 127.0.0.11\n", false),
            ("nameserver 127.0.0.110\n", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(names_docker(&file), named, "{text}");
        }
    }
}
