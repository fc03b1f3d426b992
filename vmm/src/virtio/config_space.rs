//! Reads of a device's config space.

/// Copies from `config` at `offset`; what lies out of its range reads as zeros.
pub fn read(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Ok(offset) = usize::try_from(offset) else { return };
    if let Some(rest) = config.get(offset..) {
        let count = rest.len().min(data.len());
        data[..count].copy_from_slice(&rest[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_are_zeros() {
        let config = [1, 2, 3, 4];
        for (offset, expected) in
            [(0, [1, 2]), (3, [4, 0]), (4, [0, 0]), (5, [0, 0]), (u64::MAX, [0, 0])]
        {
            let mut data = [9; 2];
            read(&config, offset, &mut data);
            assert_eq!(data, expected, "offset {offset}");
        }
    }
}
