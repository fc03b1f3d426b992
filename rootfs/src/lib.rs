//! Images in, bootable read-only layers and writable disks out.
