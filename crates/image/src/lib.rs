//! What a guest boots from: images, kernels, initramfs, root directories.
