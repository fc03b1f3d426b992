//! FUSE messages from the socket, one after the other on each of a few threads.

use std::{io, os::fd::RawFd, sync::Arc, thread, time::Duration};

use fuse_backend_rs::{
    api::{Vfs, VfsOptions, server},
    passthrough::{CachePolicy, Config, PassthroughFs},
    transport::{FuseBuf, FuseDevWriter, Reader, Writer},
};

use crate::{FsError, check, filter, tree};

/// One slow disk request does not hold up all others.
const THREADS: usize = 4;
/// The largest message that the vmm sends, and that it takes: headers and 32 pages.
const MAX_MESSAGE_BYTES: usize = (32 + 1) * 4096;
/// How long a guest may believe what it knows of a file that the host may change too.
const VALID: Duration = Duration::from_secs(1);

pub(crate) struct Server(Arc<server::Server<Vfs>>);

impl Server {
    /// Serves the tree that is now the process's root.
    pub(crate) fn new() -> Result<Self, FsError> {
        let config = Config {
            root_dir: tree::SHARES.to_owned(),
            do_import: false,
            xattr: true,
            cache_policy: CachePolicy::Auto,
            attr_timeout: VALID,
            entry_timeout: VALID,
            ..Config::default()
        };
        let failed = |source| FsError::Step { step: "open the shares", source };
        let files = PassthroughFs::<()>::new(config).map_err(failed)?;
        files.import().map_err(failed)?;
        // The layer above refuses names that are paths.
        let options = VfsOptions {
            no_open: false,
            no_opendir: false,
            no_writeback: true,
            ..VfsOptions::default()
        };
        let vfs = Vfs::new(options);
        vfs.mount(Box::new(files), "/").map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self(Arc::new(server::Server::new(vfs))))
    }

    /// Serves until the socket's other end is closed, or fails.
    pub(crate) fn run(&self, socket: RawFd) -> Result<(), FsError> {
        let filter = Arc::new(filter::compile()?);
        let others = (1..THREADS)
            .map(|number| {
                let (server, filter) = (Arc::clone(&self.0), Arc::clone(&filter));
                thread::Builder::new().name(format!("serve{number}")).spawn(move || {
                    seccompiler::apply_filter(&filter)?;
                    serve(&server, socket)
                })
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| FsError::Step { step: "start a thread", source })?;
        seccompiler::apply_filter(&filter)?;
        serve(&self.0, socket)?;
        for other in others {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }
}

fn serve(server: &server::Server<Vfs>, socket: RawFd) -> Result<(), FsError> {
    let mut request = vec![0; MAX_MESSAGE_BYTES];
    let mut reply = vec![0; MAX_MESSAGE_BYTES];
    loop {
        // SAFETY: the kernel writes to `request`, which is as long as it is told.
        let received = unsafe { libc::recv(socket, request.as_mut_ptr().cast(), request.len(), 0) };
        let Ok(length @ 1..) = usize::try_from(received) else {
            return check("receive a message", received as i64);
        };
        let message = FuseBuf::new(&mut request[..length]);
        let (Ok(reader), Ok(writer)) =
            (Reader::<()>::from_fuse_buffer(message), FuseDevWriter::<()>::new(socket, &mut reply))
        else {
            continue;
        };
        // What fails is the guest's request, and it has its reply.
        let _ = server.handle_message(reader, Writer::from(writer), None, None);
    }
}
