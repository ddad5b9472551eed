//! The small commands.

mod common;

#[cfg(test)]
mod tests {
    use super::common::{pxvm, run};

    #[test]
    fn doctor_always_ends_well_and_says_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let (code, stdout, _) = run(pxvm(["doctor"]).env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        assert!(stdout.contains("buildroot/build"), "{stdout}");
        let (code, json, _) = run(&mut pxvm(["doctor", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((code, report["checks"].as_array().map(Vec::len)), (0, Some(5)));
    }

    #[test]
    fn images_of_an_empty_cache_are_none() {
        let empty = tempfile::tempdir().unwrap();
        let (code, stdout, _) = run(pxvm(["images"]).env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        assert!(stdout.contains("buildroot/build"), "{stdout}");
    }

    #[test]
    fn the_tree_of_a_vm_names_it() {
        let empty = tempfile::tempdir().unwrap();
        let mut dtb = pxvm("dtb --machine semu --vm 12 --append panic=9".split(' '));
        let (code, stdout, _) = run(dtb.env("PXVM_CACHE", empty.path()));
        assert_eq!(code, 0);
        assert!(stdout.contains("pxvm.host=vm12 panic=9") && stdout.contains("semu"), "{stdout}");
    }

    #[test]
    fn completions_and_manual_pages_are_made() {
        let (code, script, _) = run(&mut pxvm(["completions", "bash"]));
        assert!(code == 0 && script.contains("--until"));
        let dir = tempfile::tempdir().unwrap();
        let (code, ..) = run(pxvm(["man", "--dir"]).arg(dir.path()));
        assert!(code == 0 && dir.path().join("pxvm-boot.1").is_file());
        let (code, page, _) = run(&mut pxvm(["man"]));
        assert!(code == 0 && page.contains("RISC\\-V"), "{page}");
    }

    #[test]
    fn help_names_the_exit_codes() {
        let (code, stdout, _) = run(&mut pxvm(["boot", "--help"]));
        assert!(code == 0 && stdout.contains("Exit codes") && stdout.contains("Examples"));
    }
}
