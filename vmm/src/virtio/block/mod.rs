//! virtio-blk over raw files (virtio 1.2 §5.2).
//!
//! A request moves between the file and guest memory by one `preadv` or `pwritev`, on the
//! I/O thread; when its status byte is written, nothing of it is in flight.

mod request;
mod segmented_file;

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
};

use self::request::{Disk, MAX_DATA_BYTES, MAX_RANGE_BYTES, Request, SECTOR_BYTES, Status};
pub use self::segmented_file::{ALIGNMENT, Backend, OpenError, SegmentedFile};
use super::{
    ActivateError, Activation, VirtioDevice, Worker,
    chain::Chain,
    config_space,
    device_queue::{Budget, DeviceQueue, QueueError, RING_FEATURES, single_queue},
    throttle::{SharedLimiter, Throttle},
};
use crate::spec::BlockSpec;

const QUEUE_SIZE: u16 = 256;
/// Data buffers in a request: a queue's worth less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const BUDGET: Budget = Budget { chains: 64, bytes: 8 << 20 };

const SERIAL_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// `struct virtio_blk_config` up to `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// The device as its transport sees it.
pub struct Block {
    backend: Arc<dyn Backend>,
    readonly: bool,
    serial: [u8; SERIAL_BYTES],
    config: [u8; CONFIG_BYTES],
    limiter: Option<SharedLimiter>,
}

impl Block {
    pub fn new(spec: BlockSpec) -> Result<Self, OpenError> {
        let backend = SegmentedFile::new(spec.files, spec.readonly)?;
        Ok(Self::with_backend(&spec.serial, spec.readonly, Arc::new(backend)))
    }

    /// A device over any backend; of `serial` the first 20 bytes count.
    pub fn with_backend(serial: &str, readonly: bool, backend: Arc<dyn Backend>) -> Self {
        let mut padded = [0; SERIAL_BYTES];
        for (to, from) in padded.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let config = config(backend.bytes());
        Self { backend, readonly, serial: padded, config, limiter: None }
    }

    /// Keeps the disk to a limit, which others may share.
    #[must_use]
    pub fn limited(self, limiter: Option<SharedLimiter>) -> Self {
        Self { limiter, ..self }
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let always = RING_FEATURES | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        if self.readonly {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always
                | 1 << VIRTIO_BLK_F_FLUSH
                | 1 << VIRTIO_BLK_F_DISCARD
                | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let write_through = activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        Ok(Box::new(BlockWorker {
            throttle: Throttle::new(self.limiter.as_ref())?,
            queue: single_queue(activation)?,
            disk: DiskIo {
                backend: Arc::clone(&self.backend),
                disk: Disk { bytes: self.backend.bytes(), readonly: self.readonly },
                serial: self.serial,
                write_through,
            },
        }))
    }
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4).
fn config(disk_bytes: u64) -> [u8; CONFIG_BYTES] {
    const MAX_RANGE_SECTORS: u32 = (MAX_RANGE_BYTES / SECTOR_BYTES) as u32;
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, value: u32| {
        config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    };
    put(12, SEG_MAX);
    put(20, SECTOR_BYTES as u32); // blk_size
    put(36, MAX_RANGE_SECTORS); // max_discard_sectors
    put(40, 1); // max_discard_seg
    put(44, (ALIGNMENT / SECTOR_BYTES) as u32); // discard_sector_alignment
    put(48, MAX_RANGE_SECTORS); // max_write_zeroes_sectors
    put(52, 1); // max_write_zeroes_seg
    put(56, 1); // write_zeroes_may_unmap
    config[..8].copy_from_slice(&(disk_bytes / SECTOR_BYTES).to_le_bytes());
    config
}

struct BlockWorker {
    queue: DeviceQueue,
    throttle: Throttle,
    disk: DiskIo,
}

impl MutEventSubscriber for BlockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        self.queue.register(ops);
        self.throttle.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if !self.throttle.on_event(events) {
            self.queue.on_event(events, ops);
        }
        self.throttle.serve(&mut self.queue, BUDGET, cost, |chain| self.disk.handle(chain));
        self.queue.signal();
    }
}

/// All of a request's buffers; one with more data than that is refused.
fn cost(chain: &Chain) -> usize {
    chain.bytes().min(MAX_DATA_BYTES)
}

/// Carries requests out.
struct DiskIo {
    backend: Arc<dyn Backend>,
    disk: Disk,
    serial: [u8; SERIAL_BYTES],
    /// Every write is stable when it completes: the driver does not know of flushes
    /// (virtio 1.2 §5.2.6.2).
    write_through: bool,
}

impl DiskIo {
    /// Returns the number of bytes written to the chain, the status byte included.
    fn handle(&self, chain: &mut Chain) -> Result<u32, QueueError> {
        let (header, status_byte) = request::open(chain)?;
        let data_bytes = chain.writable.bytes() as u32;
        let status = match header.parse(chain, self.disk) {
            Ok(request) => self.execute(request, chain),
            Err(status) => status,
        };
        status_byte.write(status as u8);
        Ok(data_bytes + 1)
    }

    fn execute(&self, request: Request, chain: &mut Chain) -> Status {
        let result = match request {
            Request::Read { offset } => self.backend.read(offset, &mut chain.writable),
            Request::Write { offset } => self
                .backend
                .write(offset, &mut chain.readable)
                .and_then(|()| if self.write_through { self.backend.flush() } else { Ok(()) }),
            Request::Flush if self.disk.readonly => Ok(()),
            Request::Flush => self.backend.flush(),
            Request::GetId => {
                chain.writable.write(&self.serial);
                Ok(())
            }
            Request::Discard { offset, length }
            | Request::WriteZeroes { offset, length, unmap: true } => {
                self.backend.discard(offset, length)
            }
            Request::WriteZeroes { offset, length, unmap: false } => {
                self.backend.write_zeroes(offset, length)
            }
        };
        match result {
            Ok(()) => Status::Ok,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Status::Unsupported,
            Err(_) => Status::IoError,
        }
    }
}

#[cfg(test)]
mod tests;
