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

define i32 @pxvm_select(i1 zeroext %condition, i32 %a, i32 %b) alwaysinline {
  %r = call i32 asm "selp.b32 $0, $1, $2, $3;", "=r,r,r,b"(i32 %a, i32 %b, i1 %condition)
  ret i32 %r
}

define void @pxvm_prefetch(ptr %at) alwaysinline {
  call void asm sideeffect "prefetch.global.L1 [$0];", "l"(ptr %at)
  ret void
}

define i32 @pxvm_load32_if(i1 zeroext %condition, ptr %from) alwaysinline {
  %at = addrspacecast ptr %from to ptr addrspace(1)
  %r = call i32 asm sideeffect "mov.b32 $0, 0; @$2 ld.global.b32 $0, [$1];", "=&r,l,b,~{memory}"(ptr addrspace(1) %at, i1 %condition)
  ret i32 %r
}

define i64 @pxvm_load64_if(i1 zeroext %condition, ptr %from) alwaysinline {
  %at = addrspacecast ptr %from to ptr addrspace(1)
  %r = call i64 asm sideeffect "mov.b64 $0, 0; @$2 ld.global.b64 $0, [$1];", "=&l,l,b,~{memory}"(ptr addrspace(1) %at, i1 %condition)
  ret i64 %r
}

define void @pxvm_store8_if(i1 zeroext %condition, ptr %to, i32 %value) alwaysinline {
  %at = addrspacecast ptr %to to ptr addrspace(1)
  call void asm sideeffect "@$2 st.global.b8 [$0], $1;", "l,r,b,~{memory}"(ptr addrspace(1) %at, i32 %value, i1 %condition)
  ret void
}

define void @pxvm_store16_if(i1 zeroext %condition, ptr %to, i32 %value) alwaysinline {
  %at = addrspacecast ptr %to to ptr addrspace(1)
  %half = trunc i32 %value to i16
  call void asm sideeffect "@$2 st.global.b16 [$0], $1;", "l,h,b,~{memory}"(ptr addrspace(1) %at, i16 %half, i1 %condition)
  ret void
}

define void @pxvm_store32_if(i1 zeroext %condition, ptr %to, i32 %value) alwaysinline {
  %at = addrspacecast ptr %to to ptr addrspace(1)
  call void asm sideeffect "@$2 st.global.b32 [$0], $1;", "l,r,b,~{memory}"(ptr addrspace(1) %at, i32 %value, i1 %condition)
  ret void
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
