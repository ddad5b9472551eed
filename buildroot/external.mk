include $(sort $(wildcard $(BR2_EXTERNAL_PXVM_PATH)/package/*/*.mk))
