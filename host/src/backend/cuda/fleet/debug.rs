//! Debug access to VMs in device memory: frames, words of RAM, counters.

use emu_core::mem::{FRAME_SHIFT, FRAME_SIZE, chunks};
use emu_device::memory::{FrameLayout, OnGpu, OwnPages};
use emu_device::protocol::port::PortState;

use super::{DeviceFleet, value};
use crate::backend::cuda::error::CudaError;
use crate::backend::cuda::gpu::Address;

impl DeviceFleet {
    /// Returns the frame of a page of a VM's RAM; `None` past its end. No launch may be under way.
    pub fn frame(&mut self, vm: u32, page: u32) -> Result<Option<u32>, CudaError> {
        assert!(vm < self.shape.count);
        if page >= self.launch.pages {
            return Ok(None);
        }
        let index = u64::from(vm) * u64::from(self.shape.pages) + u64::from(page);
        let mut entry = [0; 4];
        self.gpu.download(self.launch.tables.address() + 4 * index, &mut entry)?;
        Ok(Some(u32::from_le_bytes(entry)))
    }

    /// Reads a VM's RAM from byte `at`. Returns `false` past its end. No launch may be under way.
    pub fn read_ram(&mut self, vm: u32, at: u64, bytes: &mut [u8]) -> Result<bool, CudaError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = at + done as u64;
            let offset = at as u32 % FRAME_SIZE;
            let len = (bytes.len() - done).min((FRAME_SIZE - offset) as usize);
            let page = u32::try_from(at >> FRAME_SHIFT).unwrap_or(u32::MAX);
            let Some(frame) = self.frame(vm, page)? else { return Ok(false) };
            self.read(frame, offset, &mut bytes[done..done + len])?;
            done += len;
        }
        Ok(true)
    }

    /// Writes an aligned word of a VM's RAM. Returns `false` when it is not in a private page. No
    /// launch may be under way, and the guest must not have executed this word.
    pub fn write_ram(&mut self, vm: u32, at: u64, word: u32) -> Result<bool, CudaError> {
        let page = u32::try_from(at >> FRAME_SHIFT).unwrap_or(u32::MAX);
        match self.frame(vm, page)? {
            Some(frame) => self.write(frame, at as u32 % FRAME_SIZE, word),
            None => Ok(false),
        }
    }

    /// Returns the number of a VM's private frames. No launch may be under way.
    pub fn private_frames_of(&mut self, vm: u32) -> Result<u32, CudaError> {
        assert!(vm < self.shape.count);
        let pages = self.shape.pages as usize;
        let mut table = vec![0; 4 * pages];
        let at = self.launch.tables.address() + 4 * u64::from(vm) * pages as u64;
        self.gpu.download(at, &mut table)?;
        let frames = table.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let ram = frames.filter(|&frame| frame >= self.shape.shared).count() as u32;
        let at = self.launch.disks.address() + u64::from(vm) * size_of::<OwnPages>() as u64;
        let gpu = &mut self.gpu;
        let disk: OwnPages = value(|bytes| gpu.download(at, bytes))?;
        Ok(ram + disk.frames())
    }

    /// Returns the instructions that a VM has retired since its last start. No launch may be under
    /// way.
    pub fn instret(&mut self, vm: u32) -> Result<u64, CudaError> {
        assert!(vm < self.shape.count);
        let port = u64::from(vm) * size_of::<PortState>() as u64;
        let at = port + std::mem::offset_of!(PortState, instret) as u64;
        let mut bytes = [0; 8];
        self.gpu.download(self.launch.ports.address() + at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Returns the address of byte `at` of a frame.
    fn place(&self, frame: u32, at: u32) -> Result<Address, CudaError> {
        if frame >= self.launch.frames || at >= FRAME_SIZE {
            return Err(CudaError::Contract("a frame outside of the arena"));
        }
        Ok(self.launch.arena.address() + OnGpu::offset_of(frame, at) as Address)
    }

    /// Reads from one frame. No launch may be under way.
    fn read(&mut self, frame: u32, at: u32, bytes: &mut [u8]) -> Result<(), CudaError> {
        for (done, len) in chunks(OnGpu::CHUNK, at, bytes.len() as u32) {
            let chunk = &mut bytes[done as usize..][..len];
            self.gpu.download(self.place(frame, at + done)?, chunk)?;
        }
        Ok(())
    }

    /// Writes an aligned word of a frame. Returns `false` when the frame is not private. No launch
    /// may be under way, and the guest must not have executed the word.
    fn write(&mut self, frame: u32, at: u32, word: u32) -> Result<bool, CudaError> {
        let to = self.place(frame, at & !3)?;
        if frame < self.shape.shared {
            return Ok(false);
        }
        self.gpu.upload(to, &word.to_le_bytes()).map(|()| true)
    }
}
