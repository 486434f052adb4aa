//! The agent in a guest: runs commands, copies files and shuts the system down for `mimeo exec`,
//! `cp` and `stop`, over vsock (VIRTIO 1.2, 5.10; vsock(7)).
//!
//! Whoever reaches the guest's vsock port from the host's side is the host, which can do with the
//! guest whatever it likes; nobody is asked for a password. Connections from inside of the guest
//! (loopback) are refused.
//!
//! A thread a conversation. No dependencies but the standard library: see `mimeo-agent-binary`.

mod exec;
mod files;
mod power;
mod sys;
mod user;

use mimeo_agent_proto::{Failure, Message, PORT, Request, VERSION, read_message, write_message};
use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// How long the agent waits for the device at the start: its driver may still be on its way.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let mut waited = Duration::ZERO;
    let listener = loop {
        match sys::VsockListener::bind(PORT) {
            Ok(listener) => break listener,
            Err(e) if waited >= PATIENCE => {
                eprintln!("mimeo-agent: no vsock port {PORT}: {e}");
                return ExitCode::FAILURE;
            }
            Err(_) => {
                std::thread::sleep(STEP);
                waited += STEP;
            }
        }
    };
    loop {
        match listener.accept() {
            Ok((stream, cid)) if cid == sys::CID_HOST => {
                // Without a thread the host sees its connection closed and says so.
                let _ = std::thread::Builder::new().spawn(move || converse(stream));
            }
            Ok(_) => {}
            Err(e) => {
                eprintln!("mimeo-agent: {e}");
                std::thread::sleep(STEP);
            }
        }
    }
}

/// One conversation.
fn converse(mut stream: File) {
    let request = match read_message(&mut stream) {
        Ok(Some(Message::Request(request))) => request,
        _ => return,
    };
    let done = match request {
        Request::Exec(exec) => exec::run(&exec, stream.try_clone()),
        Request::Get { path } => files::get(&path, &mut stream),
        Request::Put {
            path,
            name,
            contents,
        } => files::put(&path, &name, contents, &mut stream),
        Request::PowerOff => {
            write_message(&mut stream, &Message::Ok(VERSION)).and_then(|()| power::off())
        }
        Request::Ping => write_message(&mut stream, &Message::Ok(VERSION)),
    };
    if let Err(e) = done {
        // The host may be gone, which is then the error.
        let _ = write_message(&mut stream, &failure(&e));
    }
}

/// What the host is told of an error.
fn failure(e: &io::Error) -> Message {
    let why = match e.kind() {
        io::ErrorKind::NotFound => Failure::NotFound,
        io::ErrorKind::PermissionDenied => Failure::NotExecutable,
        _ => Failure::Other,
    };
    Message::Failed(why, e.to_string())
}
