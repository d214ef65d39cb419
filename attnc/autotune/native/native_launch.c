/* Launches through the CUDA driver with no Python between them: a kernel, and a recorded call.

   Compiled where attnc runs, or when a wheel is built; launcher.py and replay.py do the same
   without it. Nothing of CUDA is linked: the driver's functions come as addresses, and a
   tensor is whatever the Python functions that are handed over make and read. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "call.h"

static int fill(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *call = PyType_FromModuleAndSpec(module, &call_spec, NULL);
    state->kernel = PyType_FromModuleAndSpec(module, &kernel_spec, NULL);
    if (!call || !state->kernel || PyModule_AddObjectRef(module, "Kernel", state->kernel) ||
        PyModule_AddObjectRef(module, "Call", call)) {
        Py_XDECREF(call);
        return -1;
    }
    Py_DECREF(call);
    return 0;
}

static void forget(void *module)
{
    State *state = PyModule_GetState(module);
    if (state)
        Py_CLEAR(state->kernel);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "native_launch", .m_size = sizeof(State),
    .m_slots = module_slots, .m_free = forget,
};

PyMODINIT_FUNC PyInit_native_launch(void)
{
    return PyModuleDef_Init(&definition);
}
