//! `containerd-shim-caisson-v2`: started by containerd, or by the CLI as `serve`.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use caisson_shim::{
    containerd::{self, CaissonShim, RUNTIME_ID},
    logger,
    serve::{self, Options, ServeError},
};

fn main() -> ExitCode {
    let words: Vec<String> =
        env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match words.first().map(String::as_str) {
        Some("serve") if words.iter().any(|word| word == "--help" || word == "-h") => {
            print(serve::HELP.as_bytes())
        }
        Some("serve") => serve(&words[1..]),
        _ if asks(&words, &["v", "version"]) => print(containerd::version().as_bytes()),
        _ if asks(&words, &["info"]) => write(&containerd::info()),
        _ => {
            runtime().block_on(containerd_shim::run::<CaissonShim>(
                RUNTIME_ID,
                Some(containerd::config()),
            ));
            ExitCode::SUCCESS
        }
    }
}

fn serve(words: &[String]) -> ExitCode {
    logger::install(false);
    let served =
        Options::parse(words).and_then(|options| runtime().block_on(serve::serve(options)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ ServeError::Usage(_)) => {
            eprintln!("containerd-shim-caisson-v2: {error}");
            ExitCode::from(2)
        }
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            log::error!("{error}{cause}");
            ExitCode::FAILURE
        }
    }
}

/// One thread: a shim mostly waits, and each thread costs memory in every VM.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .expect("a runtime needs an epoll and an eventfd")
}

/// Whether one of Go's flags with these names is given.
fn asks(words: &[String], names: &[&str]) -> bool {
    words.iter().any(|word| {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        name.is_some_and(|name| names.contains(&name))
    })
}

fn print(text: &[u8]) -> ExitCode {
    write(&[text, b"\n"].concat())
}

/// A reader that has seen enough is no error.
fn write(bytes: &[u8]) -> ExitCode {
    let _ = io::stdout().write_all(bytes);
    ExitCode::SUCCESS
}
