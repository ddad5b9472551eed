; The device's side of src/intrin.rs.

@shared_mem = external addrspace(3) global [0 x i8], align 16

declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare void @llvm.nvvm.bar.warp.sync(i32) convergent
declare i64 @llvm.nvvm.read.ptx.sreg.globaltimer()
declare i32 @llvm.nvvm.activemask() convergent
declare i32 @llvm.nvvm.vote.ballot.sync(i32, i1) convergent
declare i32 @llvm.nvvm.shfl.sync.idx.i32(i32, i32, i32, i32) convergent
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

define i64 @pxvm_now_ns() alwaysinline {
  %t = call i64 @llvm.nvvm.read.ptx.sreg.globaltimer()
  ret i64 %t
}

define void @pxvm_sync_warp(i32 %mask) alwaysinline convergent {
  call void @llvm.nvvm.bar.warp.sync(i32 %mask)
  ret void
}

define i64 @pxvm_opaque(i64 %value) alwaysinline {
  %r = call i64 asm sideeffect "mov.b64 $0, $1;", "=l,l"(i64 %value)
  ret i64 %r
}

define i32 @pxvm_half(i32 %value) alwaysinline {
  %r = call i32 asm "mov.b32 $0, $1;", "=r,r"(i32 %value)
  ret i32 %r
}

define i32 @pxvm_activemask() alwaysinline convergent {
  %r = call i32 @llvm.nvvm.activemask()
  ret i32 %r
}

define i32 @pxvm_ballot_sync(i32 %mask, i1 zeroext %predicate) alwaysinline convergent {
  %r = call i32 @llvm.nvvm.vote.ballot.sync(i32 %mask, i1 %predicate)
  ret i32 %r
}

define i32 @pxvm_shuffle_idx_sync(i32 %mask, i32 %value, i32 %lane) alwaysinline convergent {
  %r = call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 %mask, i32 %value, i32 %lane, i32 31)
  ret i32 %r
}

define void @pxvm_region_end() alwaysinline convergent {
  call void asm sideeffect "", ""() convergent
  ret void
}

define void @pxvm_trap() alwaysinline noreturn {
  call void @llvm.trap()
  unreachable
}
