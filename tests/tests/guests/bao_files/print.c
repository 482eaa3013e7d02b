/* Prints a VM configuration for a test: on each line a kind of entry, then its numbers. */
#include CONFIGURATION

#include <inttypes.h>
#include <stdio.h>

static void print_device(const struct vm_dev_region *device)
{
    printf("device 0x%" PRIx64 " 0x%" PRIx64 " 0x%zx", device->pa, device->va, device->size);
    for (size_t i = 0; i < device->interrupt_num; i++)
        printf(" %u", device->interrupts[i]);
    printf("\n");
}

#ifdef BAO_OLDER_NAMES
#define DEVICES remote_io_devs
#define DEVICE_COUNT remote_io_dev_num
#define KEY(device) ((unsigned long)(device).id)
#define IS_BACKEND(device) (device).is_backend
#else
#define DEVICES remio_devs
#define DEVICE_COUNT remio_dev_num
#define KEY(device) (device).bind_key
#define IS_BACKEND(device) ((device).type == REMIO_DEV_BACKEND)
#endif

static void print_vm(const struct vm_config *vm)
{
    const struct vm_platform *platform = &vm->platform;

    printf("vm 0x%" PRIx64 " 0x%" PRIx64 " 0x%" PRIx64 " %zu\n", vm->image.base_addr,
           vm->entry, vm->cpu_affinity, platform->cpu_num);
    printf("image %s\n", (const char *)vm->image.load_addr);
    printf("gic 0x%" PRIx64 " 0x%" PRIx64 "\n", platform->arch.gic.gicd_addr,
           platform->arch.gic.gicr_addr);
    for (size_t i = 0; i < platform->region_num; i++) {
        const struct vm_mem_region *region = &platform->regions[i];
        printf("memory 0x%" PRIx64 " 0x%zx %d 0x%" PRIx64 "\n", region->base, region->size,
               region->place_phys, region->phys);
    }
    for (size_t i = 0; i < platform->dev_num; i++)
        print_device(&platform->devs[i]);
    for (size_t i = 0; i < platform->DEVICE_COUNT; i++)
        printf("remote %d %lu %u 0x%" PRIx64 " 0x%zx 0x%" PRIx64 " 0x%zx %zu\n",
               IS_BACKEND(platform->DEVICES[i]), KEY(platform->DEVICES[i]),
               platform->DEVICES[i].interrupt, platform->DEVICES[i].va, platform->DEVICES[i].size,
               platform->DEVICES[i].shmem.base, platform->DEVICES[i].shmem.size,
               platform->DEVICES[i].shmem.shmem_id);
}

int main(void)
{
    for (size_t i = 0; i < config.shmemlist_size; i++)
        printf("shared 0x%zx\n", config.shmemlist[i].size);
    for (size_t i = 0; i < config.vmlist_size; i++)
        print_vm(&config.vmlist[i]);
    return 0;
}
