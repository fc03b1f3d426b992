//! Small programs in x86 machine code, packed as an ELF with a PVH entry.

/// Where the code is loaded and entered, in 32-bit protected mode.
const LOAD_ADDRESS: u32 = 0x10_0000;

const COM1: u16 = 0x3f8;
const KEYBOARD_COMMAND: u16 = 0x64;
const RESET: u8 = 0xfe;

/// Instructions, in the order in which they were added.
#[derive(Clone, Default)]
pub struct Payload(Vec<u8>);

impl Payload {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, code: &[u8]) -> Self {
        self.0.extend(code);
        self
    }

    /// `out port, value`
    pub fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        // mov dx, port; mov al, value; out dx, al
        self.bytes(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `in al, port`, then `out COM1, al`
    pub fn echo_port(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        let [com_low, com_high] = COM1.to_le_bytes();
        // mov dx, port; in al, dx; mov dx, COM1; out dx, al
        self.bytes(&[0x66, 0xba, low, high, 0xec, 0x66, 0xba, com_low, com_high, 0xee])
    }

    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self = self.out(COM1, byte);
        }
        self
    }

    /// Writes 32 bits to an address.
    pub fn store(self, address: u32, value: u32) -> Self {
        // mov dword [address], value
        self.bytes(&[0xc7, 0x05]).bytes(&address.to_le_bytes()).bytes(&value.to_le_bytes())
    }

    /// Prints the lowest of the 4 bytes at an address, read as 32 bits.
    pub fn echo_memory(self, address: u32) -> Self {
        let [low, high] = COM1.to_le_bytes();
        // mov eax, [address]; mov dx, COM1; out dx, al
        self.bytes(&[0xa1]).bytes(&address.to_le_bytes()).bytes(&[0x66, 0xba, low, high, 0xee])
    }

    /// Resets by the keyboard controller, and halts if that does nothing.
    pub fn reset(self) -> Self {
        self.out(KEYBOARD_COMMAND, RESET).spin()
    }

    /// Jumps to itself.
    pub fn spin(self) -> Self {
        self.bytes(&[0xeb, 0xfe])
    }

    /// An exception without a handler (the IDT is all zeros).
    pub fn triple_fault(self) -> Self {
        // ud2
        self.bytes(&[0x0f, 0x0b])
    }

    /// The payload as a kernel.
    pub fn elf(&self) -> Vec<u8> {
        const EHDR: usize = 64;
        const PHDR: usize = 56;
        let note = self.note();
        let note_offset = EHDR + 2 * PHDR;
        let code_offset = note_offset + note.len();

        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        // ET_EXEC, EM_X86_64, version.
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend(u64::from(LOAD_ADDRESS).to_le_bytes());
        elf.extend((EHDR as u64).to_le_bytes());
        // No sections, no flags; sizes and number of the program headers.
        elf.extend([0; 12]);
        for half in [EHDR as u16, PHDR as u16, 2, 0, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        const PT_LOAD: u32 = 1;
        const PT_NOTE: u32 = 4;
        for (kind, offset, address, bytes) in [
            (PT_LOAD, code_offset, LOAD_ADDRESS, self.0.len()),
            (PT_NOTE, note_offset, 0, note.len()),
        ] {
            elf.extend(kind.to_le_bytes());
            // Flags: read, write, execute.
            elf.extend(7_u32.to_le_bytes());
            let address = u64::from(address);
            for word in [offset as u64, address, address, bytes as u64, bytes as u64, 4] {
                elf.extend(word.to_le_bytes());
            }
        }
        elf.extend(note);
        elf.extend(&self.0);
        elf
    }

    /// XEN_ELFNOTE_PHYS32_ENTRY
    fn note(&self) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4_u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(LOAD_ADDRESS.to_le_bytes());
        note
    }
}
