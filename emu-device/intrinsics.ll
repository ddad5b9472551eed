; The device's side of src/intrin.rs.

@shared_mem = external addrspace(3) global [0 x i8], align 16

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare void @llvm.trap()

define i32 @pxvm_thread_idx_x() alwaysinline {
  %i = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  ret i32 %i
}

define i32 @pxvm_block_idx_x() alwaysinline {
  %i = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  ret i32 %i
}

define ptr @pxvm_shared_mem() alwaysinline {
  ret ptr addrspacecast (ptr addrspace(3) @shared_mem to ptr)
}

define void @pxvm_trap() alwaysinline noreturn {
  call void @llvm.trap()
  unreachable
}
