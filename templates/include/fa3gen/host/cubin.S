// Embeds kernel.cubin, which lies beside the object being assembled.
    .section .rodata
    .balign 64
    .global fa3gen_cubin
    .hidden fa3gen_cubin
    .type fa3gen_cubin, %object
fa3gen_cubin:
    .incbin "kernel.cubin"
    .size fa3gen_cubin, . - fa3gen_cubin
    .section .note.GNU-stack, "", %progbits
