/*
 * The types of a Bao VM configuration that ours use, so that a C compiler can check ours without
 * Bao's sources. Written from the documented names and types. The order of members differs from
 * Bao's; no initialiser here depends on it. BAO_OLDER_NAMES selects the names of May to August
 * 2024.
 */
#ifndef CONFIG_H
#define CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t paddr_t;
typedef uint64_t vaddr_t;
typedef uint64_t cpumap_t;
typedef uint64_t colormap_t;
typedef unsigned int irqid_t;

#define STR(text) #text
#define XSTR(text) STR(text)

/* Bao includes the image; here its path is kept, to be looked at. */
#define VM_IMAGE(name, path) static const char name##_image[] = path;
#define VM_IMAGE_OFFSET(name) ((paddr_t)&name##_image)
#define VM_IMAGE_SIZE(name) sizeof(name##_image)
#define CONFIG_HEADER .config_header_size = sizeof(struct config),

struct shmem {
    size_t size;
    colormap_t colors;
    bool place_phys;
    paddr_t phys;
};

struct vm_mem_region {
    paddr_t base;
    size_t size;
    bool place_phys;
    paddr_t phys;
};

struct vm_dev_region {
    paddr_t pa;
    vaddr_t va;
    size_t size;
    size_t interrupt_num;
    irqid_t *interrupts;
};

struct shared_region {
    paddr_t base;
    size_t size;
    size_t shmem_id;
};

#ifdef BAO_OLDER_NAMES
struct remote_io_dev {
    vaddr_t va;
    size_t size;
    irqid_t interrupt;
    uint64_t id;
    bool is_backend;
    struct shared_region shmem;
};
#else
enum remio_type { REMIO_DEV_FRONTEND, REMIO_DEV_BACKEND };

struct remio_dev {
    vaddr_t va;
    size_t size;
    irqid_t interrupt;
    unsigned long bind_key;
    enum remio_type type;
    struct shared_region shmem;
};
#endif

struct vm_platform {
    size_t cpu_num;
    size_t region_num;
    struct vm_mem_region *regions;
    size_t dev_num;
    struct vm_dev_region *devs;
#ifdef BAO_OLDER_NAMES
    bool remote_io_pooling;
    size_t remote_io_dev_num;
    struct remote_io_dev *remote_io_devs;
#else
    size_t remio_dev_num;
    struct remio_dev *remio_devs;
#endif
    struct {
        struct {
            paddr_t gicd_addr;
            paddr_t gicr_addr;
        } gic;
    } arch;
};

struct vm_config {
    struct {
        vaddr_t base_addr;
        paddr_t load_addr;
        size_t size;
    } image;
    vaddr_t entry;
    cpumap_t cpu_affinity;
    struct vm_platform platform;
};

struct config {
    size_t config_header_size;
    size_t shmemlist_size;
    struct shmem *shmemlist;
    size_t vmlist_size;
#ifdef BAO_OLDER_NAMES
    struct vm_config vmlist[];
#else
    struct vm_config *vmlist;
#endif
};

#endif
