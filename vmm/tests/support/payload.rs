//! Small programs in x86 machine code, packed as an ELF with a PVH entry.

/// Where the code is loaded and entered, in 32-bit protected mode.
const LOAD_ADDRESS: u32 = 0x10_0000;

const COM1: u16 = 0x3f8;
const KEYBOARD_COMMAND: u16 = 0x64;
const RESET: u8 = 0xfe;

/// Instructions, in the order in which they were added.
#[derive(Clone, Default)]
pub struct Payload {
    code: Vec<u8>,
}

/// What 32 bits at an address must be.
#[derive(Clone, Copy)]
pub struct Until {
    pub address: u32,
    pub mask: u32,
    /// `None`: anything but zero.
    pub wanted: Option<u32>,
}

impl Payload {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, code: &[u8]) -> Self {
        self.code.extend(code);
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

    /// Writes 16 bits to an address.
    pub fn store16(self, address: u32, value: u16) -> Self {
        // mov word [address], value
        self.bytes(&[0x66, 0xc7, 0x05]).bytes(&address.to_le_bytes()).bytes(&value.to_le_bytes())
    }

    /// Writes 8 bits to an address.
    pub fn store8(self, address: u32, value: u8) -> Self {
        // mov byte [address], value
        self.bytes(&[0xc6, 0x05]).bytes(&address.to_le_bytes()).bytes(&[value])
    }

    /// Writes the 8 bytes at `from` to `to` as one access.
    pub fn copy64(self, to: u32, from: u32) -> Self {
        // movq mm0, [from]; movq [to], mm0
        self.bytes(&[0x0f, 0x6f, 0x05])
            .bytes(&from.to_le_bytes())
            .bytes(&[0x0f, 0x7f, 0x05])
            .bytes(&to.to_le_bytes())
    }

    /// Adds 1 to the 16 bits at an address.
    pub fn increment16(self, address: u32) -> Self {
        // inc word [address]
        self.bytes(&[0x66, 0xff, 0x05]).bytes(&address.to_le_bytes())
    }

    /// Repeats `body` until the 32 bits at an address fit, at most `limit` times; then
    /// prints `what` with what is there instead, and resets. An exit each time lets other
    /// threads of the vmm run.
    ///
    /// `counter` is an address of 4 bytes that nothing else uses meanwhile.
    pub fn repeat_until(
        self,
        Until { address, mask, wanted }: Until,
        limit: u32,
        counter: u32,
        what: &str,
        body: Payload,
    ) -> Self {
        // mov ebx, eax
        let failed = Payload::new()
            .bytes(&[0x89, 0xc3])
            .print(&format!("FAILED {what}: "))
            .print_ebx()
            .print("\n")
            .reset();
        // je over the rest, or jne where anything but zero fits.
        let (compare, jump) = match wanted {
            Some(value) => ([&[0x3d], &value.to_le_bytes()[..]].concat(), 0x84),
            None => (vec![0x85, 0xc0], 0x85),
        };
        // mov esi, eax; in al, 0x80; mov eax, esi; dec dword [counter]
        let pace = Payload::new()
            .bytes(&[0x89, 0xc6, 0xe4, 0x80, 0x89, 0xf0, 0xff, 0x0d])
            .bytes(&counter.to_le_bytes());
        // mov eax, [address]; and eax, mask; the comparison
        let test = Payload::new()
            .bytes(&[0xa1])
            .bytes(&address.to_le_bytes())
            .bytes(&[0x25])
            .bytes(&mask.to_le_bytes())
            .bytes(&compare);
        const JUMP: usize = 6;
        let rest = pace.len() + JUMP + failed.len();
        let back = body.len() + test.len() + JUMP + pace.len() + JUMP;
        self.store(counter, limit)
            .bytes(&body.code)
            .bytes(&test.code)
            .bytes(&[0x0f, jump])
            .bytes(&(rest as u32).to_le_bytes())
            .bytes(&pace.code)
            // jnz back to the body
            .bytes(&[0x0f, 0x85])
            .bytes(&(back as u32).wrapping_neg().to_le_bytes())
            .bytes(&failed.code)
    }

    /// Prints ebx as 8 hexadecimal digits.
    fn print_ebx(self) -> Self {
        let [low, high] = COM1.to_le_bytes();
        self.bytes(&[
            0xb9, 0x08, 0x00, 0x00, 0x00, // mov ecx, 8
            0x66, 0xba, low, high, // mov dx, COM1
            0xc1, 0xc3, 0x04, // digit: rol ebx, 4
            0x88, 0xd8, // mov al, bl
            0x24, 0x0f, // and al, 15
            0x04, 0x30, // add al, '0'
            0x3c, 0x39, // cmp al, '9'
            0x76, 0x02, // jbe below
            0x04, 0x27, // add al, 'a' - '9' - 1
            0xee, // below: out dx, al
            0x49, // dec ecx
            0x75, 0xed, // jnz digit
        ])
    }

    pub fn len(&self) -> usize {
        self.code.len()
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
            (PT_LOAD, code_offset, LOAD_ADDRESS, self.code.len()),
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
        elf.extend(&self.code);
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
