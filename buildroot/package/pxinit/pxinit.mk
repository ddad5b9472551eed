################################################################################
#
# pxinit
#
################################################################################

PXINIT_VERSION = 1
PXINIT_SITE = $(BR2_EXTERNAL_PXVM_PATH)/package/pxinit/src
PXINIT_SITE_METHOD = local
PXINIT_LICENSE = MIT or Apache-2.0

define PXINIT_BUILD_CMDS
	$(TARGET_MAKE_ENV) $(MAKE) -C $(@D) $(TARGET_CONFIGURE_OPTS) pxinit
endef

define PXINIT_INSTALL_TARGET_CMDS
	$(INSTALL) -D -m 0755 $(@D)/pxinit $(TARGET_DIR)/init
endef

$(eval $(generic-package))
