/*
 * Bao's configuration for one file system between two Linux VMs on QEMU's aarch64 "virt" machine,
 * for bao-hypervisor's branch of May to August 2024, with its older names. It belongs to
 * linux-backend-a.dts, linux-frontend.dts and config-fs.yaml.
 */
#include <config.h>

VM_IMAGE(linux_backend, XSTR(BAO_DEMOS_WRKDIR_IMGS/linux_backend.bin))
VM_IMAGE(linux_frontend, XSTR(BAO_DEMOS_WRKDIR_IMGS/linux_frontend.bin))

struct config config = {

    CONFIG_HEADER

    .shmemlist_size = 1,
    .shmemlist = (struct shmem[]) {
        [0] = { .size = 0x01000000 },
    },

    .vmlist_size = 2,
    .vmlist = {
        { /* the backend VM: gangplankd and gangplank-frontend */
            .image = {
                .base_addr = 0x80000000,
                .load_addr = VM_IMAGE_OFFSET(linux_backend),
                .size = VM_IMAGE_SIZE(linux_backend),
            },
            .entry = 0x80000000,
            .cpu_affinity = 0x1,

            .platform = {
                .cpu_num = 1,

                /* At the VM's own addresses: QEMU's virtio devices know no others. */
                .region_num = 1,
                .regions = (struct vm_mem_region[]) {
                    {
                        .base = 0x80000000,
                        .size = 0x80000000,
                        .place_phys = true,
                        .phys = 0x80000000,
                    },
                },

                .remote_io_dev_num = 1,
                .remote_io_pooling = false,
                /*
                 * The position in this list is the id in the device model's YAML. id only
                 * pairs the two sides.
                 */
                .remote_io_devs = (struct remote_io_dev[]) {
                    {
                        .id = 0,
                        .is_backend = true,
                        .interrupt = 40, /* SPI 8 of Bao's driver */
                        .shmem = { .base = 0x10000000, .size = 0x01000000, .shmem_id = 0 },
                    },
                },

                .dev_num = 2,
                .devs = (struct vm_dev_region[]) {
                    { /* QEMU's last eight virtio slots */
                        .pa = 0x0a003000,
                        .va = 0x0a003000,
                        .size = 0x1000,
                        .interrupt_num = 8,
                        .interrupts = (irqid_t[]) { 72, 73, 74, 75, 76, 77, 78, 79 },
                    },
                    { /* the virtual timer */
                        .interrupt_num = 1,
                        .interrupts = (irqid_t[]) { 27 },
                    },
                },

                .arch = {
                    .gic = { .gicd_addr = 0x08000000, .gicr_addr = 0x080a0000 },
                },
            },
        },
        { /* the frontend VM: mount -t virtiofs */
            .image = {
                .base_addr = 0x30000000,
                .load_addr = VM_IMAGE_OFFSET(linux_frontend),
                .size = VM_IMAGE_SIZE(linux_frontend),
            },
            .entry = 0x30000000,
            .cpu_affinity = 0x2,

            .platform = {
                .cpu_num = 1,

                /*
                 * Above the backend VM, so that both fit into 4 GiB, whatever Bao and its images
                 * take below.
                 */
                .region_num = 1,
                .regions = (struct vm_mem_region[]) {
                    {
                        .base = 0x30000000,
                        .size = 0x40000000,
                        .place_phys = true,
                        .phys = 0x100000000,
                    },
                },

                .remote_io_dev_num = 1,
                .remote_io_devs = (struct remote_io_dev[]) {
                    {
                        .id = 0,
                        .is_backend = false,
                        .va = 0x0a003e00,
                        .size = 0x200,
                        .interrupt = 79, /* SPI 47 of the virtio_mmio node */
                        .shmem = { .base = 0x10000000, .size = 0x01000000, .shmem_id = 0 },
                    },
                },

                .dev_num = 2,
                .devs = (struct vm_dev_region[]) {
                    { /* QEMU's first UART */
                        .pa = 0x09000000,
                        .va = 0x09000000,
                        .size = 0x1000,
                        .interrupt_num = 1,
                        .interrupts = (irqid_t[]) { 33 },
                    },
                    { /* the virtual timer */
                        .interrupt_num = 1,
                        .interrupts = (irqid_t[]) { 27 },
                    },
                },

                .arch = {
                    .gic = { .gicd_addr = 0x08000000, .gicr_addr = 0x080a0000 },
                },
            },
        },
    },
};
