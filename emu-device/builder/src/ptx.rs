//! Compiles host bitcode to PTX text.

use crate::Error;
use crate::llvm::{Llvm, Module, Value, message};
use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr::null_mut;

const TRIPLE: &str = "nvptx64-nvidia-cuda";
const CALL_PTX_KERNEL: u32 = 71;
const LINKAGE_INTERNAL: c_int = 8;
const VISIBILITY_DEFAULT: c_int = 0;
const FUNCTION: u32 = u32::MAX;
const OPT_AGGRESSIVE: c_int = 3;
const RELOC_PIC: c_int = 2;
const CODE_MODEL_DEFAULT: c_int = 0;
const EMIT_ASSEMBLY: c_int = 0;

/// How to compile a bitcode file.
pub struct Options<'a> {
    /// Target architecture, such as `sm_75`.
    pub cpu: &'a str,
    /// PTX version, such as `+ptx78`.
    pub features: &'a str,
    /// LLVM text that defines the functions which the Rust code declares as `extern "C"`.
    pub intrinsics: &'a str,
    /// Names of the entry points.
    pub entries: &'a [&'a str],
    /// Warps of some entry points that must fit on a multiprocessor at once.
    pub resident_warps: &'a [(&'a str, u32)],
    /// The file to write the optimised module to as text, for inspection.
    pub keep_ir: Option<&'a Path>,
}

fn c(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Turns a bitcode file into PTX.
pub fn emit(bitcode: &Path, options: &Options<'_>) -> Result<String, Error> {
    let llvm = Llvm::open()?;
    // SAFETY: each call follows LLVM's C interface: handles come from the library and are used
    // while it is open, strings are NUL-terminated, out-pointers are valid. What LLVM allocates
    // is not freed: this runs once, in a build script.
    unsafe { emit_with(&llvm, bitcode, options) }
}

// SAFETY of a call: the handles come from `llvm` and are alive.
unsafe fn emit_with(llvm: &Llvm, bitcode: &Path, options: &Options<'_>) -> Result<String, Error> {
    // SAFETY: see `emit`.
    unsafe {
        (llvm.LLVMInitializeNVPTXTargetInfo)();
        (llvm.LLVMInitializeNVPTXTarget)();
        (llvm.LLVMInitializeNVPTXTargetMC)();
        (llvm.LLVMInitializeNVPTXAsmPrinter)();
        let context = (llvm.LLVMContextCreate)();
        let mut error: *mut c_char = null_mut();

        let mut buffer = crate::llvm::Buffer(null_mut());
        let path = c(&bitcode.to_string_lossy());
        if (llvm.LLVMCreateMemoryBufferWithContentsOfFile)(path.as_ptr(), &mut buffer, &mut error)
            != 0
        {
            return Err(Error::Llvm(message(error)));
        }
        let mut module = Module(null_mut());
        if (llvm.LLVMParseBitcodeInContext2)(context, buffer, &mut module) != 0 {
            return Err(Error::Llvm("cannot read the bitcode".to_owned()));
        }

        let triple = c(TRIPLE);
        let mut target = crate::llvm::Target(null_mut());
        if (llvm.LLVMGetTargetFromTriple)(triple.as_ptr(), &mut target, &mut error) != 0 {
            return Err(Error::Llvm(message(error)));
        }
        let (cpu, features) = (c(options.cpu), c(options.features));
        let machine = (llvm.LLVMCreateTargetMachine)(
            target,
            triple.as_ptr(),
            cpu.as_ptr(),
            features.as_ptr(),
            OPT_AGGRESSIVE,
            RELOC_PIC,
            CODE_MODEL_DEFAULT,
        );
        let layout = (llvm.LLVMCreateTargetDataLayout)(machine);

        // With debug info the PTX would contain `.target …, debug`, and ptxas would not optimise.
        (llvm.LLVMStripModuleDebugInfo)(module);
        (llvm.LLVMSetTarget)(module, triple.as_ptr());
        (llvm.LLVMSetModuleDataLayout)(module, layout);
        (llvm.LLVMSetModuleInlineAsm2)(module, c"".as_ptr(), 0);

        let intrinsics = c(options.intrinsics);
        let text = (llvm.LLVMCreateMemoryBufferWithMemoryRangeCopy)(
            intrinsics.as_ptr(),
            options.intrinsics.len(),
            c"intrinsics".as_ptr(),
        );
        let mut defined = Module(null_mut());
        if (llvm.LLVMParseIRInContext)(context, text, &mut defined, &mut error) != 0 {
            return Err(Error::Llvm(message(error)));
        }
        (llvm.LLVMSetTarget)(defined, triple.as_ptr());
        (llvm.LLVMSetModuleDataLayout)(defined, layout);
        if (llvm.LLVMLinkModules2)(module, defined) != 0 {
            return Err(Error::Llvm("cannot link the intrinsics".to_owned()));
        }

        retarget(llvm, module, options);
        run_passes(llvm, module, machine, "default<Os>")?;
        if let Some(path) = options.keep_ir {
            let path = c(&path.to_string_lossy());
            (llvm.LLVMPrintModuleToFile)(module, path.as_ptr(), &mut error);
        }
        if let Some(name) = undefined(llvm, module) {
            return Err(Error::Undefined(name));
        }

        let mut assembly = crate::llvm::Buffer(null_mut());
        if (llvm.LLVMTargetMachineEmitToMemoryBuffer)(
            machine,
            module,
            EMIT_ASSEMBLY,
            &mut error,
            &mut assembly,
        ) != 0
        {
            return Err(Error::Llvm(message(error)));
        }
        let start = (llvm.LLVMGetBufferStart)(assembly).cast::<u8>();
        let bytes = std::slice::from_raw_parts(start, (llvm.LLVMGetBufferSize)(assembly));
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Prepares a module for the device: makes kernels of the entry points and everything else
/// internal, and removes what only the host understands.
// SAFETY of a call: the handles come from `llvm` and are alive.
unsafe fn retarget(llvm: &Llvm, module: Module, options: &Options<'_>) {
    // SAFETY: see `emit`.
    unsafe {
        let mut function = (llvm.LLVMGetFirstFunction)(module);
        while !function.0.is_null() {
            for attribute in ["target-cpu", "target-features", "probe-stack", "tune-cpu"] {
                (llvm.LLVMRemoveStringAttributeAtIndex)(
                    function,
                    FUNCTION,
                    attribute.as_ptr().cast(),
                    attribute.len() as u32,
                );
            }
            if (llvm.LLVMIsDeclaration)(function) == 0 {
                (llvm.LLVMSetPersonalityFn)(function, Value(null_mut()));
                if options.entries.contains(&name(llvm, function).as_str()) {
                    (llvm.LLVMSetFunctionCallConv)(function, CALL_PTX_KERNEL);
                    let mut resident = options.resident_warps.iter();
                    if let Some((_, warps)) =
                        resident.find(|(entry, _)| *entry == name(llvm, function))
                    {
                        let warps = c(&warps.to_string());
                        let set = llvm.LLVMAddTargetDependentFunctionAttr;
                        set(function, c"nvvm.maxntid".as_ptr(), c"32".as_ptr());
                        set(function, c"nvvm.minctasm".as_ptr(), warps.as_ptr());
                    }
                } else {
                    (llvm.LLVMSetVisibility)(function, VISIBILITY_DEFAULT);
                    (llvm.LLVMSetLinkage)(function, LINKAGE_INTERNAL);
                }
            }
            function = (llvm.LLVMGetNextFunction)(function);
        }
        // This keeps symbols alive for the host's linker. On the device it would keep unused ones.
        for list in [c"llvm.used", c"llvm.compiler.used"] {
            let global = (llvm.LLVMGetNamedGlobal)(module, list.as_ptr());
            if !global.0.is_null() {
                (llvm.LLVMDeleteGlobal)(global);
            }
        }
        let mut global = (llvm.LLVMGetFirstGlobal)(module);
        while !global.0.is_null() {
            if (llvm.LLVMIsDeclaration)(global) == 0 {
                (llvm.LLVMSetVisibility)(global, VISIBILITY_DEFAULT);
                (llvm.LLVMSetLinkage)(global, LINKAGE_INTERNAL);
            }
            global = (llvm.LLVMGetNextGlobal)(global);
        }
    }
}

// SAFETY of a call: the handles come from `llvm` and are alive.
unsafe fn run_passes(
    llvm: &Llvm,
    module: Module,
    machine: crate::llvm::Machine,
    passes: &str,
) -> Result<(), Error> {
    // SAFETY: see `emit`.
    unsafe {
        let passes = c(passes);
        let options = (llvm.LLVMCreatePassBuilderOptions)();
        let error = (llvm.LLVMRunPasses)(module, passes.as_ptr(), machine, options);
        if error.is_null() {
            return Ok(());
        }
        Err(Error::Llvm(message((llvm.LLVMGetErrorMessage)(error))))
    }
}

// SAFETY of a call: the handles come from `llvm` and are alive.
unsafe fn name(llvm: &Llvm, value: Value) -> String {
    // SAFETY: see `emit`.
    unsafe {
        let mut len = 0;
        let start = (llvm.LLVMGetValueName2)(value, &mut len).cast::<u8>();
        String::from_utf8_lossy(std::slice::from_raw_parts(start, len)).into_owned()
    }
}

/// Returns the name of a function that is called but not defined, if there is one.
// SAFETY of a call: the handles come from `llvm` and are alive.
unsafe fn undefined(llvm: &Llvm, module: Module) -> Option<String> {
    // SAFETY: see `emit`.
    unsafe {
        let mut function = (llvm.LLVMGetFirstFunction)(module);
        while !function.0.is_null() {
            if (llvm.LLVMIsDeclaration)(function) != 0
                && (llvm.LLVMGetIntrinsicID)(function) == 0
                && !(llvm.LLVMGetFirstUse)(function).0.is_null()
            {
                return Some(name(llvm, function));
            }
            function = (llvm.LLVMGetNextFunction)(function);
        }
        None
    }
}
