//! The part of LLVM's C interface that is needed, from the library that rustc itself uses.

use crate::Error;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::process::Command;

macro_rules! handles {
    ($($name:ident),*) => {
        $(#[repr(transparent)] #[derive(Clone, Copy, PartialEq, Eq)] pub struct $name(pub *mut c_void);)*
    };
}
handles!(Context, Module, Value, Buffer, Target, Machine, TargetData, PassOptions, Use);
/// An `LLVMErrorRef`; null for success.
pub type ErrorRef = *mut c_void;

macro_rules! api {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// Function pointers, valid as long as the library is open.
        #[allow(non_snake_case)]
        pub struct Llvm {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            _library: Library,
        }

        impl Llvm {
            fn load(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: the signatures are those of LLVM's C headers, which are stable.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)*
                        _library: library,
                    })
                }
            }
        }
    };
}

type Str = *const c_char;
type Out<T> = *mut T;

api! {
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
    LLVMContextCreate() -> Context;
    LLVMCreateMemoryBufferWithContentsOfFile(Str, Out<Buffer>, Out<Out<c_char>>) -> c_int;
    LLVMCreateMemoryBufferWithMemoryRangeCopy(Str, usize, Str) -> Buffer;
    LLVMParseBitcodeInContext2(Context, Buffer, Out<Module>) -> c_int;
    LLVMParseIRInContext(Context, Buffer, Out<Module>, Out<Out<c_char>>) -> c_int;
    LLVMLinkModules2(Module, Module) -> c_int;
    LLVMStripModuleDebugInfo(Module) -> c_int;
    LLVMGetTargetFromTriple(Str, Out<Target>, Out<Out<c_char>>) -> c_int;
    LLVMCreateTargetMachine(Target, Str, Str, Str, c_int, c_int, c_int) -> Machine;
    LLVMCreateTargetDataLayout(Machine) -> TargetData;
    LLVMSetModuleDataLayout(Module, TargetData);
    LLVMSetTarget(Module, Str);
    LLVMSetModuleInlineAsm2(Module, Str, usize);
    LLVMGetFirstFunction(Module) -> Value;
    LLVMGetNextFunction(Value) -> Value;
    LLVMGetFirstGlobal(Module) -> Value;
    LLVMGetNextGlobal(Value) -> Value;
    LLVMGetNamedGlobal(Module, Str) -> Value;
    LLVMDeleteGlobal(Value);
    LLVMGetValueName2(Value, Out<usize>) -> Str;
    LLVMIsDeclaration(Value) -> c_int;
    LLVMSetLinkage(Value, c_int);
    LLVMSetVisibility(Value, c_int);
    LLVMSetFunctionCallConv(Value, c_uint);
    LLVMAddTargetDependentFunctionAttr(Value, Str, Str);
    LLVMSetPersonalityFn(Value, Value);
    LLVMRemoveStringAttributeAtIndex(Value, c_uint, Str, c_uint);
    LLVMGetFirstUse(Value) -> Use;
    LLVMGetIntrinsicID(Value) -> c_uint;
    LLVMCreatePassBuilderOptions() -> PassOptions;
    LLVMRunPasses(Module, Str, Machine, PassOptions) -> ErrorRef;
    LLVMGetErrorMessage(ErrorRef) -> Out<c_char>;
    LLVMTargetMachineEmitToMemoryBuffer(Machine, Module, c_int, Out<Out<c_char>>, Out<Buffer>) -> c_int;
    LLVMGetBufferStart(Buffer) -> Str;
    LLVMGetBufferSize(Buffer) -> usize;
    LLVMPrintModuleToFile(Module, Str, Out<Out<c_char>>) -> c_int;
}

impl Llvm {
    /// Opens the library that the rustc of this build uses.
    pub fn open() -> Result<Self, Error> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let program = rustc.to_string_lossy().into_owned();
        let output = Command::new(&rustc)
            .args(["--print", "sysroot"])
            .output()
            .map_err(|source| Error::Run { program, source })?;
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("lib");
        let library = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with("libLLVM") && path.metadata().is_ok_and(|m| m.len() > 1 << 20)
            })
            .max()
            .ok_or(Error::NoLlvm(folder))?;
        // SAFETY: LLVM's initialisers have no requirements.
        Ok(Self::load(unsafe { Library::new(library)? })?)
    }
}

/// A message that LLVM handed out, or a word that there is none.
pub fn message(text: *const c_char) -> String {
    if text.is_null() {
        return "no message".to_owned();
    }
    // SAFETY: LLVM's messages are NUL-terminated strings; this one is not freed.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
