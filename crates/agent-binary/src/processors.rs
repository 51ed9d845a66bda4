&[
    Processor { name: "x86_64", rust: "x86_64" },
    Processor { name: "aarch64", rust: "aarch64" },
    Processor { name: "riscv64", rust: "riscv64gc" },
]
