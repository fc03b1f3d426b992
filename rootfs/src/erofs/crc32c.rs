//! CRC-32C (Castagnoli) of the superblock's block.

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// Without the final inversion, as the kernel's `crc32c(~0, …)`.
pub(super) fn crc32c(data: &[u8]) -> u32 {
    data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_rfc_3720() {
        assert_eq!(!super::crc32c(b"123456789"), 0xe306_9283);
    }
}
